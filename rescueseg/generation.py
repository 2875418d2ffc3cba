"""The stages of one generation, each a function that is safe to kill and call again.

::

    begin ► snapshot ► training ► inference ► evaluation ► query ► tickets ► report ► finish

`begin` fixes the generation's number in the queue's ledger. Every stage then commits by writing its ``<stage>.json`` as
its last act and is skipped once that is there, so a rerun goes on where the last run was killed, with the same snapshot
and to the same model and queried patches. No clock enters a result; how long a stage took lies beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescueseg.annotation.ledger import HeldLock
from rescueseg.annotation.store import QueueStore
from rescueseg.campaign import Campaign
from rescueseg.errors import EvaluationError, QueueError, TrainingError
from rescueseg.records import ModelReference, Snapshot
from rescueseg.seeds import random_generator

if TYPE_CHECKING:
    from distributed import Client

    from rescueseg.annotation.records import AcceptedAnnotation

_NOTE_EVERY = 10
"""Training steps between two notes of progress."""
STAGES = ("snapshot", "training", "inference", "evaluation", "query", "tickets", "report")

Progress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done and how many there are."""


@dataclass(frozen=True)
class Due:
    """Whether a generation is to run.

    Parameters
    ----------
    generation : int
        Its number: the unfinished one, or the next.
    due : bool
        True when it should run now.
    reason : str
        One sentence for people.
    """

    generation: int
    due: bool
    reason: str


def count_due(campaign: Campaign, store: QueueStore) -> Due:
    """Recount in the database whether a generation is due; call it under the campaign's lock.

    Parameters
    ----------
    campaign : Campaign
        Its ``trigger.accepted_patches`` is the threshold.
    store : QueueStore
        Queue and ledger.
    """
    last = store.last_generation()
    if last is not None and last.finished_at is None:
        return Due(last.generation, True, f"generation {last.generation} was begun and not finished")
    following = 0 if last is None else last.generation + 1
    if waiting := _holdout_waiting(campaign):
        return Due(following, False, f"{waiting} holdout boxes are not annotated yet")
    if last is not None and (stop := campaign.finished(last.generation, "tickets")["stop"]):
        return Due(following, False, f"the campaign says stop: {stop}")
    enough, reason = patches_due(campaign, store)
    return Due(following, enough, reason)


def patches_due(campaign: Campaign, store: QueueStore) -> tuple[bool, str]:
    """Tell whether enough patches were accepted since the last generation, and in a sentence how many.

    Enough are ``trigger.accepted_patches``, or all that were asked for when those are fewer.
    """
    accepted, wanted = store.accepted_since_last_generation(), campaign.config.trigger.accepted_patches
    reason = f"{accepted} of {wanted} patches accepted since the last generation"
    if 0 < accepted < wanted:
        states = {ticket.status for ticket in store.tickets(purpose="pool")}
        if states <= {"accepted", "skipped"}:
            return True, f"{reason}, and no more were asked for"
    return accepted >= wanted, reason


@contextmanager
def campaign_lock(
    campaign: Campaign, store: QueueStore, *, name: str = "generation", refuse: bool = True
) -> Iterator[HeldLock | None]:
    """Hold one of the campaign's locks during the block.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue, which keeps the locks.
    name : str
        What is locked.
    refuse : bool
        Raise when somebody else holds it; yield None otherwise.

    Raises
    ------
    QueueError
        If somebody else holds it and `refuse` is set.
    """
    with ExitStack() as stack:
        try:
            held = stack.enter_context(store.lock(name, f"{name} of {campaign.config.name}"))
        except QueueError:
            if refuse:
                raise
            yield None
            return
        yield held


def begin(campaign: Campaign, store: QueueStore) -> int:
    """Write the generation to run into the ledger and return its number; an unfinished one is continued.

    Raises
    ------
    QueueError
        If no patch was accepted yet.
    EvaluationError
        If holdout boxes still wait for their annotation.
    ConfigError
        If the campaign names a query strategy that there is not: better now than after the training.
    """
    accepted = check_ready(campaign, store)
    due = count_due(campaign, store)
    store.begin_generation(due.generation, accepted)
    return due.generation


def check_ready(campaign: Campaign, store: QueueStore) -> int:
    """Make sure that a generation could begin, and return the number of accepted patches; see `begin` for what it raises."""
    from rescueseg.query import find_strategy
    from rescueseg.triage import query_strategy

    find_strategy(query_strategy(campaign))
    accepted = len(store.accepted("pool"))
    if not accepted:
        raise QueueError(
            "no accepted patch to train on", where=campaign.url, todo="Annotate: 'rescueseg queue next CAMPAIGN'"
        )
    if waiting := _holdout_waiting(campaign):
        raise EvaluationError(
            f"{waiting} holdout boxes are not annotated yet",
            where=campaign.url,
            todo="Their tickets come first in the queue; annotate and accept them",
        )
    return accepted


def _holdout_waiting(campaign: Campaign) -> int:
    from rescueseg.evaluation import missing_truth

    return len(missing_truth(campaign)) if campaign.holdout() else 0


# stages -----------------------------------------------------------------------------------------------------------


def run_stage(campaign: Campaign, generation: int, stage: str, work: Callable[[], Any]) -> Any:
    """Do the work of a stage unless it is done, note its seconds, commit."""
    done = campaign.stage_result(generation, stage)
    if done is not None:
        return done
    started = time.perf_counter()
    result = work()
    _commit(campaign, generation, stage, result, time.perf_counter() - started)
    return result


def _commit(campaign: Campaign, generation: int, stage: str, result: Any, seconds: float) -> None:
    campaign.finish_stage(generation, f"{stage}.seconds", round(seconds, 3))
    campaign.finish_stage(generation, stage, result)


def _put_in(accepted: Sequence[AcceptedAnnotation]) -> dict[str, float]:
    """Return what accepted labels cost."""
    return {
        "voxels_corrected": sum(a.voxels_corrected for a in accepted),
        "annotation_seconds": round(sum(a.seconds for a in accepted), 1),
    }


def make_snapshot(campaign: Campaign, generation: int, store: QueueStore) -> Any:
    """Write the generation's immutable training set from the accepted annotations; see `rescueseg.snapshot`."""
    from rescueseg import snapshot
    from rescueseg.triage import freeze_choice

    def work() -> Any:
        campaign.settle_domains()
        accepted = store.accepted("pool")
        before = campaign.snapshot(generation - 1) if generation else None
        known = {item.annotation_id for item in before.items} if before else set()
        new = [a for a in accepted if a.annotation_id not in known]
        names = sorted({a.annotator for a in new})
        effort = {
            **_put_in(new),
            "annotators": {who: _put_in([a for a in new if a.annotator == who]) for who in names},
            "patches": {a.ticket_id: {"annotator": a.annotator, **_put_in([a])} for a in new},
        }
        campaign.finish_stage(generation, "effort", effort)
        freeze_choice(campaign, generation)
        return snapshot.make_snapshot(campaign, generation, accepted).to_json()

    done = run_stage(campaign, generation, "snapshot", work)
    store.count_accepted(generation, len(done["items"]))
    return done


def train(campaign: Campaign, generation: int, progress: Callable[[int, Mapping[str, float]], None]) -> Any:
    """Train the generation's model, or go on training it from its last checkpoint.

    The stage's seconds are the trainer's: those before a kill count, setting up does not.

    Parameters
    ----------
    campaign : Campaign
        Its ``training`` settings name the trainer.
    generation : int
        Its snapshot must exist.
    progress : callable
        Called once per step with the step and its metrics.

    Raises
    ------
    TrainingError
        If the snapshot is missing or holds nothing to learn from.
    """
    done = campaign.stage_result(generation, "training")
    if done is not None:
        return done
    result = _train(campaign, generation, progress)
    _commit(campaign, generation, "training", result, result.pop("seconds"))
    return result


def _train(campaign: Campaign, generation: int, progress: Callable[[int, Mapping[str, float]], None]) -> dict[str, Any]:
    from rescueseg.triage import trainer_name

    training_set = campaign.snapshot(generation)
    if training_set is None:
        raise TrainingError("the snapshot is missing", where=f"generation {generation}", todo="Make it first")
    return train_snapshot(
        campaign,
        training_set,
        trainer_name(campaign, generation),
        seed=_seed(campaign, generation, "training"),
        work_dir=campaign.work_folder(generation),
        folder=campaign.generation_path(generation, "model"),
        progress=partial(_note_step, campaign, generation, progress),
    )


def train_snapshot(
    campaign: Campaign,
    training_set: Snapshot,
    name: str,
    *,
    seed: int,
    work_dir: Path,
    folder: str,
    progress: Callable[[int, Mapping[str, float]], None],
) -> dict[str, Any]:
    """Train on a snapshot and store the model in the campaign.

    With ``training.warm_start`` the model of the generation before is where it starts, if the same trainer made it.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    training_set : Snapshot
        What is trained on.
    name : str
        The trainer's.
    seed : int
        Every random number follows from it.
    work_dir : Path
        Local folder of checkpoints; a rerun with the same one resumes.
    folder : str
        Where the model goes, below the campaign.
    progress : callable
        Called once per step with the step and its metrics.

    Returns
    -------
    dict
        Reference to the model, steps, losses, warnings and the seconds of training, JSON-ready.
    """
    from rescueseg.training import TrainingRequest, get_trainer
    from rescueseg.training.registry import resolve_device

    trainer, number = get_trainer(name), training_set.generation
    warnings: list[str] = []
    previous = campaign.model(number - 1) if number and campaign.config.training.warm_start else None
    if previous is not None and previous.trainer != name:
        warnings = [f"trained from scratch: generation {number - 1} was made by another trainer, {previous.trainer}"]
        previous = None
    request = TrainingRequest(
        campaign=campaign,
        snapshot=training_set,
        work_dir=work_dir,
        seed=seed,
        warm_start=_local_copy(campaign, previous, work_dir) if previous else None,
        device=resolve_device("auto"),
    )
    model = trainer.train(request, progress)
    for file in sorted(model.path.iterdir()):
        campaign.storage.write_bytes(f"{folder}/{file.name}", file.read_bytes())
    reference = ModelReference(generation=number, trainer=trainer.name, path=folder, digest=model.digest)
    return {
        "model": reference.to_json(),
        "iterations": model.iterations,
        "losses": [dict(entry) for entry in model.losses],
        "warnings": [*warnings, *model.warnings, *model.notes],
        "seconds": round(model.seconds, 3),
    }


def _note_step(
    campaign: Campaign,
    generation: int,
    progress: Callable[[int, Mapping[str, float]], None],
    step: int,
    metrics: Mapping[str, float],
) -> None:
    if step % _NOTE_EVERY == 0:
        campaign.note_progress(generation, "training step", step, 0)
    progress(step, metrics)


def _local_copy(campaign: Campaign, model: ModelReference, work_dir: Path) -> Path:
    """Copy a committed model to this machine's disk: the one that trained it may be another."""
    from rescueseg.training.base import DESCRIPTION_FILE, WEIGHTS_FILE
    from rescueseg.training.folder import committed_files, write_atomically

    folder = work_dir / "warm-start"
    for name, data in zip((WEIGHTS_FILE, DESCRIPTION_FILE), committed_files(campaign, model), strict=True):
        write_atomically(folder / name, data)
    return folder


def infer(campaign: Campaign, generation: int, client: Client | None, progress: Progress) -> Any:
    """Predict all volumes with the generation's model; finished blocks are not done again.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    generation : int
        Its model must exist.
    client : distributed.Client or None
        Where blocks are computed; in this process when None.
    progress : callable
        Called with the volume's id, blocks done, blocks in all.
    """
    ids = [volume.volume_id for volume in campaign.volumes()]
    return run_stage(
        campaign,
        generation,
        "inference",
        lambda: [infer_volume(campaign, generation, volume, client, progress) for volume in ids],
    )


def infer_volume(campaign: Campaign, generation: int, volume_id: str, client: Client | None, progress: Progress) -> Any:
    """Predict one volume with a generation's model; see `rescueseg.inference.engine`."""
    from rescueseg.inference import engine

    def report(done: int, total: int) -> None:
        campaign.note_progress(generation, f"{volume_id}: block", done, total)
        progress(volume_id, done, total)

    maps = engine.infer_volume(
        campaign,
        _model(campaign, generation),
        volume_id,
        client=client,
        progress=report,
    )
    return maps.to_json()


def evaluate(campaign: Campaign, generation: int) -> Any:
    """Score the generation on the holdout and decide on the champion: it moves only if the validation boxes say so.

    The temperature of its probabilities is fitted first and kept with it; see `rescueseg.calibration`.
    """
    from rescueseg.calibration import settled_calibration
    from rescueseg.champion import judge
    from rescueseg.evaluation import evaluate_generation

    def work() -> Any:
        settled_calibration(campaign, generation)
        return judge(campaign, evaluate_generation(campaign, generation)).to_json()

    return run_stage(campaign, generation, "evaluation", work)


def champion(campaign: Campaign) -> int | None:
    """Return the generation whose model is champion; None before the first evaluation."""
    from rescueseg.champion import judgements

    judged = judgements(campaign)
    return judged[-1].champion if judged else None


def _model(campaign: Campaign, generation: int) -> ModelReference:
    model = campaign.model(generation)
    if model is None:
        raise TrainingError("there is no model", where=f"generation {generation}", todo="Train it first")
    return model


def _seed(campaign: Campaign, generation: int, purpose: str) -> int:
    return int(random_generator(campaign.config.seed, purpose, generation).integers(2**31))
