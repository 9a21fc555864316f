"""Training: state, step, loop, checkpoints, metrics, and the folder that a run leaves."""
