"""The inference stage: all volumes through the generation's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rescueseg.active_learning.strategies import needed_maps
from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.route import frozen_choice
from rescueseg.campaign.stage_results import INFERENCE
from rescueseg.errors import TrainingError
from rescueseg.inference import engine
from rescueseg.inference.maps import OBJECT_DISAGREEMENT
from rescueseg.progress import Progress
from rescueseg.records import MapReference, ModelReference
from rescueseg.stages.stage import run_stage

if TYPE_CHECKING:
    from distributed import Client


def infer(campaign: Campaign, generation: int, client: Client | None, progress: Progress) -> tuple[MapReference, ...]:
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
    campaign.require_volumes()
    ids = [volume.volume_id for volume in campaign.volumes.records()]
    return run_stage(
        campaign.generation(generation),
        INFERENCE,
        lambda: tuple(infer_volume(campaign, generation, volume, client, progress) for volume in ids),
    )


def infer_volume(
    campaign: Campaign, generation: int, volume_id: str, client: Client | None, progress: Progress
) -> MapReference:
    """Predict one volume with a generation's model, with all maps that its query strategy needs.

    See `rescueseg.inference.engine`.
    """
    folder = campaign.generation(generation)

    def note(done: int, total: int) -> None:
        folder.note_progress(f"{volume_id}: block", done, total)
        progress(volume_id, done, total)

    return engine.infer_volume(
        campaign,
        _model(folder),
        volume_id,
        client=client,
        progress=note,
        object_disagreement=OBJECT_DISAGREEMENT in needed_maps(frozen_choice(campaign, generation).strategy),
    )


def _model(generation: GenerationFolder) -> ModelReference:
    model = generation.model()
    if model is None:
        raise TrainingError("there is no model", where=f"generation {generation.number}", todo="Train it first")
    return model
