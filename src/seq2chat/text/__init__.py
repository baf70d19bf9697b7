"""From text to tensors: corpora, tokenizers, shards of tokens, and batches."""
