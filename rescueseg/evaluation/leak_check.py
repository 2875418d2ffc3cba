"""Refuses an evaluation on what the model's training has read, and one with the maps of another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rescueseg.campaign import Campaign
from rescueseg.errors import EvaluationError, LeakError
from rescueseg.geometry import Box
from rescueseg.inference.maps import map_reference, open_map
from rescueseg.records import HoldoutBox, ModelReference, Snapshot, SnapshotItem


def require_model(campaign: Campaign, generation: int) -> ModelReference:
    """Return a generation's model.

    Raises
    ------
    EvaluationError
        If it has none.
    """
    model = campaign.model(generation)
    if model is None:
        trained = ", ".join(str(g) for g in campaign.generations() if campaign.model(g)) or "none yet"
        raise EvaluationError(
            f"generation {generation} has no model",
            where=campaign.url,
            todo=f"Train and infer it before evaluating; generations with a model: {trained}",
        )
    return model


def require_own_maps(campaign: Campaign, model: ModelReference, boxes: Iterable[HoldoutBox]) -> None:
    """Make sure that the maps of the boxes' volumes are complete and made by this model.

    Raises
    ------
    InferenceError
        If maps are not complete.
    EvaluationError
        If another model made them.
    """
    for volume_id in sorted({b.volume_id for b in boxes}):
        open_map(campaign, model.generation, volume_id, "probability")
        maps = map_reference(campaign, model.generation, volume_id)
        if maps is None or maps.model_digest != model.digest:
            raise EvaluationError(
                f"another model than that of generation {model.generation} made the maps",
                where=f"volume {volume_id}",
                todo="Run the generation's inference again",
            )


def require_unseen(campaign: Campaign, generation: int, boxes: Sequence[HoldoutBox]) -> None:
    """Make sure that nothing that training has read lies in a box to be evaluated.

    The generation's snapshot counts and those of all before it, from whose weights its training may have started. Places
    that several volumes show count as one: a copy under another name hides nothing.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    generation : int
        Whose model is evaluated.
    boxes : sequence of HoldoutBox
        What it is to be evaluated on.

    Raises
    ------
    LeakError
        At the first box that was trained on, or that touches what a training has read.
    EvaluationError
        If the generation's own snapshot is gone, so that what its model has read is unknown.
    """
    if campaign.snapshot(generation) is None:
        raise EvaluationError(
            f"the snapshot of generation {generation} is gone: nobody can tell what its model has read",
            where=campaign.url,
            todo="Restore the campaign's folder, or train again",
        )
    _require_clear(campaign, f"generation {generation}", _read_by_generations(campaign, generation), boxes)


def require_unseen_by_training(campaign: Campaign, name: str, snapshot: Snapshot, boxes: Sequence[HoldoutBox]) -> None:
    """Make sure that nothing that a training outside the loop has read lies in a box to be evaluated.

    Its own snapshot counts and those of all generations before it, as in `require_unseen`.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    name : str
        The training's.
    snapshot : Snapshot
        What it was trained on.
    boxes : sequence of HoldoutBox
        What it is to be evaluated on.

    Raises
    ------
    LeakError
        At the first box that was trained on, or that touches what a training has read.
    """
    own = {f"training {name}": snapshot}
    _require_clear(campaign, f"training {name}", own | _read_by_generations(campaign, snapshot.generation - 1), boxes)


def _read_by_generations(campaign: Campaign, last: int) -> dict[str, Snapshot]:
    snapshots = {f"generation {g}": campaign.snapshot(g) for g in campaign.generations() if g <= last}
    return {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}


def _require_clear(
    campaign: Campaign, subject: str, snapshots: Mapping[str, Snapshot], boxes: Sequence[HoldoutBox]
) -> None:
    """Refuse when an item of a snapshot touches a box; `subject` is the evaluated model, for the message."""
    places = campaign.shared_places()
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
