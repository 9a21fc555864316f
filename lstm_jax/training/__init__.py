"""Training: state, step, loop, checkpoints, metrics, and the run folder."""
