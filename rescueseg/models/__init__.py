"""Trainers and predictors behind two protocols (`trainer.Trainer`, `predictor.Predictor`), one folder per model family."""
