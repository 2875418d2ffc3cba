"""The stages of one generation, each a function that is safe to kill and call again.

::

    begin ► snapshot ► training ► inference ► evaluation ► query ► tickets ► report ► finish

`begin` (`rescueseg.stages.due`) fixes the generation's number in the queue's ledger. Every stage then commits by writing
its ``<stage>.json`` as its last act and is skipped once that is there, so a rerun goes on where the last run was killed,
with the same snapshot and to the same model and queried patches. A trial of trainers (`rescueseg.stages.trial`), where
one is due, comes before the training. No clock enters a result; how long a stage took lies
beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rescueseg.campaign import GenerationFolder
from rescueseg.campaign.record_file import RecordFile, T

NOTE_EVERY = 10
"""Training steps between two notes of progress."""


def run_stage(generation: GenerationFolder, file: RecordFile[T], work: Callable[[], T]) -> T:
    """Return a stage's result; its work is done, timed and committed only where there is none yet."""
    previous = generation.read(file)
    if previous is not None:
        return previous
    started = time.perf_counter()
    result = work()
    commit(generation, file, result, time.perf_counter() - started)
    return result


def commit(generation: GenerationFolder, file: RecordFile[T], result: T, seconds: float) -> None:
    """Write the seconds that a stage took, then its result."""
    generation.write(file.seconds, round(seconds, 3))
    generation.write(file, result)
