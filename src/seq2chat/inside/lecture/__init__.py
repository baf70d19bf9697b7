"""The lecture, computed: one file a topic, each number from the package's own tensors."""
