"""The lecture, computed: one file a topic, each number from the package's own tensors."""

SENTENCE = "I am a robot"  # what the topics read when they are given no text
