"""One training loop for every objective, and what it needs: optimizers, schedules, checkpoints, metrics, run folders."""
