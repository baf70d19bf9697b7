"""Strings become tensors: corpora are read, tokenized, written as shards and dealt out as
batches."""
