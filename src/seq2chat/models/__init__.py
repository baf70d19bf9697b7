"""Models: one architecture, one file. They share contracts, not parents."""
