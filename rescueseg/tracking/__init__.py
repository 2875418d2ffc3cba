"""MLflow, and the only package that imports it: experiment, runs, curves, models and aliases of a campaign."""
