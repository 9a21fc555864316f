"""The ways to run a recurrence over time; `lstm_jax.recurrence` chooses between them."""
