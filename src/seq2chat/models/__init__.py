"""Models: one file per architecture. They share contracts, not a base class."""
