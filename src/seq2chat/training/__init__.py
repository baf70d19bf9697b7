"""One training loop for every objective, with its optimizers, schedules, checkpoints, metrics and
run folders."""
