"""The course: one file per topic, with every number computed from the package's own tensors."""

SENTENCE = "I am a robot"  # default text of the topics
