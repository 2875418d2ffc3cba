"""How good a model is: metrics, holdout scores with intervals, comparison, champion, calibration, the doubtful places."""
