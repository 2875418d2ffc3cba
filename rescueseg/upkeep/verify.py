"""Reads everything that a campaign holds and says what is not what was stored.

Every check is a piece of work with a name; it yields what it has looked at and the damage that it has found. Nothing is
written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rescueseg.campaign import (
    Campaign,
    GenerationFolder,
    RecordFolder,
    TrainingFolder,
    VolumeFolder,
    layout,
    volume_folder,
)
from rescueseg.campaign import campaign as campaign_records
from rescueseg.campaign.identity import IDENTITY
from rescueseg.campaign.label_arrays import read_classes, read_objects
from rescueseg.campaign.layout import PLACES, STAGES
from rescueseg.campaign.outside_trainings import REQUEST, RESULT, STEPS, read_losses
from rescueseg.campaign.record_file import RecordFile, seconds_file
from rescueseg.campaign.snapshot import snapshot_digest
from rescueseg.campaign.stage_results import (
    CHOICE,
    EFFORT,
    INFERENCE,
    LOSSES,
    PROGRESS,
    QUERY,
    SNAPSHOT,
    TICKETS,
    TRAINING,
    TRIAL,
    TRIAL_LENGTH,
)
from rescueseg.delivery.records import RULE
from rescueseg.errors import RESTORE, QueueError, RescuesegError, StorageError, damaged
from rescueseg.evaluation.calibration import CALIBRATION
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.stored_scores import SCORES
from rescueseg.evaluation.training_scores import TRAINING_EVALUATION
from rescueseg.inference.map_check import check_maps
from rescueseg.inference.maps import VolumeMaps
from rescueseg.models.files import committed_files
from rescueseg.progress import Progress
from rescueseg.queue.check import check_queue
from rescueseg.queue.store import is_new, open_queue
from rescueseg.records import ModelReference, Snapshot
from rescueseg.reports.generation_table import REPORT
from rescueseg.sampling.starting_patches import EXAMPLE
from rescueseg.storage import Storage
from rescueseg.triage.records import TRIAGE
from rescueseg.upkeep.backup import files_of
from rescueseg.volumes.consistency import CONSISTENCY
from rescueseg.volumes.image_check import check_image

_ROOT_RECORDS: tuple[RecordFile[Any], ...] = (
    IDENTITY,
    campaign_records.HOLDOUT,
    campaign_records.STARTING,
    campaign_records.EXAMPLES,
    campaign_records.ROUGH,
    volume_folder.RELATIONS,
    volume_folder.DOMAINS,
    TRIAGE,
    CONSISTENCY,
)
_STAGES = (SNAPSHOT, TRAINING, INFERENCE, EVALUATION, QUERY, TICKETS, REPORT)
_GENERATION_RECORDS: tuple[RecordFile[Any], ...] = (
    *_STAGES,
    *(seconds_file(file.name) for file in _STAGES),
    *(EFFORT, CHOICE, TRIAL, TRIAL.seconds, TRIAL_LENGTH, LOSSES, PROGRESS, SCORES, CALIBRATION, RULE),
)
_TRAINING_RECORDS: tuple[RecordFile[Any], ...] = (
    REQUEST,
    RESULT,
    STEPS,
    LOSSES,
    TRAINING_EVALUATION,
    CALIBRATION,
    RULE,
)


@dataclass
class Verification:
    """What a look at everything found.

    Parameters
    ----------
    damage : list of RescuesegError
        What is missing, altered or cannot be read, each with its place.
    unchecked : list of RescuesegError
        What kept a check from being made, such as a queue of an earlier version; no damage.
    unknown : list of str
        Files below the campaign that no version of rescueseg writes there; they do no harm.
    files, size : int
        Files, and bytes in them.
    seconds : float
        It took.
    """

    damage: list[RescuesegError] = field(default_factory=list)
    unchecked: list[RescuesegError] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0
    seconds: float = 0.0


Check = tuple[str, Callable[[], Iterable[RescuesegError]]]
"""What is looked at, and what yields the damage there."""


def verify(campaign: Campaign, progress: Progress | None = None) -> Verification:
    """Read everything that a campaign holds.

    Parameters
    ----------
    campaign : Campaign
        Nothing is written to it.
    progress : callable, optional
        Called with (what is looked at, how many checks are done, how many there are).
    """
    started, result = time.perf_counter(), Verification()
    files = files_of(campaign)
    result.files, result.size = len(files), sum(file.size for file in files)
    result.unknown = [file.path for file in files if not _is_known(file.path)]
    work = list(_checks(campaign, [file.path for file in files]))
    for number, (name, look) in enumerate(work):
        if progress is not None:
            progress(name, number, len(work))
        try:
            result.damage += look()
        except RescuesegError as error:  # what the check itself stands on cannot be read
            result.damage.append(error)
    errors = {(error.where, error.what): error for error in result.damage}.values()
    result.damage = [error for error in errors if _is_damage(error)]
    result.unchecked = [error for error in errors if not _is_damage(error)]
    result.seconds = round(time.perf_counter() - started, 3)
    return result


def _is_damage(error: RescuesegError) -> bool:
    """Tell whether something is lost or altered: then a backup is what helps."""
    return RESTORE in error.todo or not isinstance(error, (QueueError, StorageError))


def _is_known(path: str) -> bool:
    return any(place.matches(path) for place in PLACES if place not in (layout.GENERATION, layout.TRAINING))


def _checks(campaign: Campaign, paths: Sequence[str]) -> Iterator[Check]:
    """Yield what there is to look at; `paths` are the campaign's files."""
    storage, names = campaign.storage, _names(campaign.storage)
    yield "records", partial(_records, campaign.volumes, names, paths)
    yield "what belongs together", partial(_missing, campaign)
    yield "queue and labels", partial(check_queue, campaign)
    yield "first masks", partial(_masks, storage, paths)
    generations = campaign.generations()
    for generation in generations:
        yield f"generation {generation.number}", partial(_generation, generation)
    for name in campaign.trainings():
        yield f"training {name}", partial(_training, campaign.training(name))
    for name in names:
        yield f"image {name}", partial(check_image, campaign.volumes, name)
        for generation in generations:
            maps = VolumeMaps(generation, name)
            yield f"maps of {name} in generation {generation.number}", partial(check_maps, maps)


def _names(storage: Storage) -> list[str]:
    """Return the volumes by the names of their records, which may be damaged."""
    names = (n.removesuffix(".json") for n in storage.list(layout.VOLUME.top) if n.endswith(".json"))
    return [name for name in names if layout.is_id(name)]


def _read(folder: RecordFolder, file: RecordFile[Any]) -> Iterator[RescuesegError]:
    try:
        folder.read(file)
    except RescuesegError as error:
        yield error


def _records(volumes: VolumeFolder, names: Sequence[str], paths: Sequence[str]) -> Iterator[RescuesegError]:
    storage = volumes.storage
    for file in _ROOT_RECORDS:
        yield from _read(RecordFolder(storage), file)
    for name in names:
        try:
            volumes.record(name)
        except RescuesegError as error:
            yield error
    for path in filter(is_record, paths):
        try:  # all others have a checksum at least
            storage.read_json(path)
        except RescuesegError as error:
            if storage.exists(path):  # else it was removed since it was listed
                yield error


def _missing(campaign: Campaign) -> Iterator[RescuesegError]:
    """Yield the records that others show to have been there.

    What earlier versions did not write is asked only where this one, which notes checksums, made the rest.
    """
    storage, records = campaign.storage, campaign.records
    begun = campaign.generations()
    if is_new(storage):
        return
    with closing(open_queue(campaign)) as store:
        tickets, last = store.views.tickets(), store.ledger.last_generation()
    sampled = bool(begun or any(ticket.stratum != EXAMPLE for ticket in tickets))
    expected: list[RecordFile[Any]] = [campaign_records.HOLDOUT, campaign_records.STARTING] if sampled else []
    names = _names(storage)
    if len(names) > 1 and has_checksum(storage, campaign_records.HOLDOUT.path()):
        expected.append(volume_folder.RELATIONS)
    for file in expected:
        if not records.has(file):
            yield damaged(storage.path(file.path()), "it is missing")
    try:
        campaign.require_volumes()
    except RescuesegError as error:
        yield error
    for generation in begun:
        is_last = last is not None and last.generation == generation.number and last.finished_at is None
        stages = generation.finished_stages() if is_last else STAGES
        for path in _unwritten(generation, stages):
            yield damaged(storage.path(path), "it is missing")
    for path in sorted({ticket.prefill for ticket in tickets if ticket.prefill}):
        if not storage.exists(path):
            yield damaged(storage.path(path), "it is missing")


def is_record(path: str) -> bool:
    """Tell whether a file of a campaign is a record; Zarr's and models' descriptions are no records of ours."""
    others = (
        *(layout.IMAGE, layout.MAPS, layout.MODEL, layout.OUTSIDE_MODEL),
        *(layout.CHECKPOINTS, layout.OUTSIDE_CHECKPOINTS, layout.SERVICES),
    )
    return path.endswith(".json") and _is_known(path) and not any(place.matches(path) for place in others)


def has_checksum(storage: Storage, path: str) -> bool:
    """Tell whether this version wrote a record; one that is missing or damaged is told of elsewhere."""
    try:
        document = json.loads(storage.read_bytes(path))
    except (RescuesegError, ValueError):
        return False
    return isinstance(document, dict) and "sha256" in document


def _unwritten(generation: GenerationFolder, stages: Sequence[str]) -> Iterator[str]:
    """Yield what a generation has not written, though it must have before the last of some stages."""
    if not stages:
        return
    finished, present = STAGES[: STAGES.index(stages[-1]) + 1], generation.finished_stages()
    yield from (generation.path(f"{stage}.json") for stage in finished if stage not in present)
    if has_checksum(generation.storage, generation.path("snapshot.json")):
        needed: list[RecordFile[Any]] = [seconds_file(stage) for stage in finished] + [EFFORT, CHOICE]
        needed += [LOSSES] if "training" in finished and not read_losses(generation) else []
        needed += [CALIBRATION] if "evaluation" in finished else []
        yield from (file.path(generation.folder) for file in needed if not generation.has(file))


def _generation(folder: GenerationFolder) -> Iterator[RescuesegError]:
    for file in _GENERATION_RECORDS:
        yield from _read(folder, file)
    snapshot = folder.snapshot()
    if snapshot is not None:
        yield from _snapshot(folder, snapshot)
    elif folder.has(TRAINING):
        yield damaged(folder.storage.path(SNAPSHOT.path(folder.folder)), "it is missing")
    model = folder.model()
    if model is not None:
        yield from _model(folder.storage, model)
    for finished in folder.read(INFERENCE) or ():
        if VolumeMaps(folder, finished.volume_id).reference() != finished:
            yield damaged(
                folder.storage.path(folder.path("maps", f"{finished.volume_id}.json")), "it is missing or another"
            )


def _training(folder: TrainingFolder) -> Iterator[RescuesegError]:
    for file in _TRAINING_RECORDS:
        yield from _read(folder, file)
    request, result = folder.read(REQUEST), folder.read(RESULT)
    if request is not None:
        yield from _snapshot(folder, request.snapshot)
    if result is not None:
        yield from _model(folder.storage, result.model)


def _snapshot(folder: RecordFolder, snapshot: Snapshot) -> Iterator[RescuesegError]:
    """Compute a training set's digest again, and read its labels."""
    path = folder.storage.path(folder.folder)
    if snapshot_digest(snapshot.items, snapshot.n_classes, snapshot.holdout_digest) != snapshot.digest:
        yield damaged(path, "the training set is not the one whose digest it names")
    for item in snapshot.items:
        for read in (read_classes, read_objects):
            try:
                read(folder.storage, item)
            except RescuesegError as error:
                yield error


def _model(storage: Storage, model: ModelReference) -> Iterator[RescuesegError]:
    try:
        committed_files(storage, model)
    except RescuesegError as error:
        yield error


def _masks(storage: Storage, paths: Sequence[str]) -> Iterator[RescuesegError]:
    """Read the first masks of tickets, whose archives carry checksums of their own."""
    for path in paths:
        if path.endswith(".npz") and not layout.ANNOTATION.matches(path):
            try:
                storage.read_array(path)
            except RescuesegError as error:
                yield error
