"""The building blocks of models: attention, positions, masks, feed-forwards and caches."""
