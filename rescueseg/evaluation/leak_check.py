"""Refuses an evaluation on what the model's training has read, and one with the maps of another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rescueseg.campaign import GenerationFolder, TrainingFolder
from rescueseg.campaign.folders import generations
from rescueseg.errors import EvaluationError, LeakError
from rescueseg.geometry import Box
from rescueseg.inference.maps import VolumeMaps
from rescueseg.records import HoldoutBox, ModelReference, Snapshot, SnapshotItem
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import Storage


def require_model(generation: GenerationFolder) -> ModelReference:
    """Return a generation's model.

    Raises
    ------
    EvaluationError
        If it has none.
    """
    model = generation.model()
    if model is None:
        trained = ", ".join(str(g.number) for g in generation.all() if g.model()) or "none yet"
        raise EvaluationError(
            f"generation {generation.number} has no model",
            where=generation.storage.url,
            todo=f"Train and infer it before evaluating; generations with a model: {trained}",
        )
    return model


def require_own_maps(generation: GenerationFolder, model: ModelReference, boxes: Iterable[HoldoutBox]) -> None:
    """Make sure that the maps of the boxes' volumes are complete and made by this model.

    Raises
    ------
    InferenceError
        If maps are not complete.
    EvaluationError
        If another model made them.
    """
    for volume_id in sorted({b.volume_id for b in boxes}):
        if VolumeMaps(generation, volume_id).finished().model_digest != model.digest:
            raise EvaluationError(
                f"another model than that of generation {model.generation} made the maps",
                where=f"volume {volume_id}",
                todo="Run the generation's inference again",
            )


def require_unseen(generation: GenerationFolder, boxes: Sequence[HoldoutBox], places: SharedPlaces) -> None:
    """Make sure that nothing that training has read lies in a box to be evaluated.

    The generation's snapshot counts and those of all before it, from whose weights its training may have started. Places
    that several volumes show count as one: a copy under another name hides nothing.

    Parameters
    ----------
    generation : GenerationFolder
        Whose model is evaluated.
    boxes : sequence of HoldoutBox
        What it is to be evaluated on.
    places : SharedPlaces
        Which places of the volumes are the same.

    Raises
    ------
    LeakError
        At the first box that was trained on, or that touches what a training has read.
    EvaluationError
        If the generation's own snapshot is gone, so that what its model has read is unknown.
    """
    if generation.snapshot() is None:
        raise EvaluationError(
            f"the snapshot of generation {generation.number} is gone: nobody can tell what its model has read",
            where=generation.storage.url,
            todo="Restore the campaign's folder, or train again",
        )
    name = f"generation {generation.number}"
    _require_clear(places, name, _read_by_generations(generation.storage, generation.number), boxes)


def require_unseen_by_training(
    training: TrainingFolder, snapshot: Snapshot, boxes: Sequence[HoldoutBox], places: SharedPlaces
) -> None:
    """Make sure that nothing that a training outside the loop has read lies in a box to be evaluated.

    Its own snapshot counts and those of all generations before it, as in `require_unseen`.

    Parameters
    ----------
    training : TrainingFolder
        Whose model is evaluated.
    snapshot : Snapshot
        What it was trained on.
    boxes : sequence of HoldoutBox
        What it is to be evaluated on.
    places : SharedPlaces
        Which places of the volumes are the same.

    Raises
    ------
    LeakError
        At the first box that was trained on, or that touches what a training has read.
    """
    name = f"training {training.name}"
    earlier = _read_by_generations(training.storage, snapshot.generation - 1)
    _require_clear(places, name, {name: snapshot} | earlier, boxes)


def _read_by_generations(storage: Storage, last: int) -> dict[str, Snapshot]:
    snapshots = {f"generation {g.number}": g.snapshot() for g in generations(storage) if g.number <= last}
    return {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}


def _require_clear(
    places: SharedPlaces, subject: str, snapshots: Mapping[str, Snapshot], boxes: Sequence[HoldoutBox]
) -> None:
    """Refuse when an item of a snapshot touches a box; `subject` is the evaluated model, for the message."""
    for owner, snapshot in snapshots.items():
        for item in snapshot.items:
            for box in boxes:
                for there in places.boxes_in(item.volume_id, [box.patch]):
                    _refuse_overlap(item, box, there, subject, owner)


def _refuse_overlap(item: SnapshotItem, box: HoldoutBox, there: Box, subject: str, owner: str) -> None:
    """Raise when an item of the snapshot of `owner` touches an evaluated box, which lies `there` in the item's volume."""
    copy = f", which shows what {box.volume_id} shows," if item.volume_id != box.volume_id else ""
    where = f"{box.part} box {box.volume_id} {box.box}"
    todo = f"Train again without ticket {item.ticket_id}; holdout boxes are never trained on"
    if item.box.contains(there):
        raise LeakError(
            f"{subject} would be evaluated on its own snapshot: {owner} was trained on "
            f"{item.volume_id}{copy} {item.box}",
            where=where,
            todo=todo,
        )
    if item.read_box.intersects(there) or item.box.intersects(there):
        raise LeakError(
            f"the training of {owner.removeprefix('training ')} has read {item.volume_id}{copy} {item.read_box}, "
            f"which touches this box: {subject} cannot be evaluated on it",
            where=where,
            todo=todo,
        )
