"""Training a detector: settings, the trainer, one step, the saved state, the run folder and its logs."""
