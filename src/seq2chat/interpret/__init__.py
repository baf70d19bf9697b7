"""Look inside models: recorded activations, attention maps and alignments, and pictures of them."""
