"""Generation: tokens in, tokens out. Written once over `start`, `step` and `reorder`; knows no
text."""
