"""Implementations of a recurrence over time; `lstm_jax.recurrence` chooses among them."""
