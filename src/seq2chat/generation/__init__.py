"""Generation: tokens in, tokens out. This package does not handle text."""
