"""Simulated annotators, for demonstrations, tests and the active-learning benchmark."""
