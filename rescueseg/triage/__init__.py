"""Which route (trainer, strategy, post-processing) suits an image and its objects: see `triage.triage` and the tree in `tree`."""
