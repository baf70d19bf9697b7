"""From seq2seq to ChatGPT: train, align, serve and look inside your own language model."""

__version__ = "0.1.0"
