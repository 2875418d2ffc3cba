"""The functions that long work calls to say how far it is: a bar in the terminal, lines in a log, curves in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

CountProgress = Callable[[int, int], None]
"""Called with (done, total): how many pieces of one piece of work are done, and how many there are."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total): what is counted, such as a volume's id or "boxes", and then as `CountProgress`."""

StepProgress = Callable[[int, Mapping[str, float]], None]
"""Called with (step, metrics) once per optimiser step: the step, from 1, and at least `loss` and `learning_rate`."""
