"""Training on many GPUs: `plan` predicts a run by closed forms, `simulate` executes one rank."""
