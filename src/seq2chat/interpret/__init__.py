"""Look inside models: recorded tensors, attention, logit lens, attribution and interventions."""
