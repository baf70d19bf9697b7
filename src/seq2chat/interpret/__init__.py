"""Looking inside: what a model computes on the way, and the lecture with every number computed."""
