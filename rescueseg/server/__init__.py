"""The annotation server: `app.create_app`. Importing it imports neither torch, MONAI, MLflow nor Prefect."""
