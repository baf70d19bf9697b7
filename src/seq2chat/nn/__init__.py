"""The pieces models are made of: attention, positions, masks, feed-forwards, and the cache of keys
and values."""
