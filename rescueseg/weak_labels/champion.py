"""The champion of another campaign as weak labeller: what was learned there is where annotation starts here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rescueseg.campaign import Campaign
from rescueseg.errors import WeakLabelError
from rescueseg.evaluation.champion import champion
from rescueseg.geometry import ZYX, Spacing, zyx
from rescueseg.inference.boxes import predict_image
from rescueseg.models.predictor import Predictor
from rescueseg.models.registry import load_predictor
from rescueseg.records import Normalisation, VolumeRecord
from rescueseg.volumes.normalise import LINEAR, common_linear, denormalise, normalise, with_linear
from rescueseg.weak_labels.base import Float32, WeakLabel, from_probabilities


@dataclass(frozen=True)
class ChampionLabeller:
    """A trained model, window by window; windows are those of the model's own spacing in micrometre.

    Parameters
    ----------
    predictor : Predictor
        The model.
    overlap : float
        Overlap of neighbouring windows as a fraction of the window.
    linear : float
        `Normalisation.linear` of the volumes that the model has learned from.
    normalisation : Normalisation, optional
        Of the volume that is labelled; without it, its images are taken as they come.
    """

    predictor: Predictor
    overlap: float = 0.25
    linear: float = LINEAR
    normalisation: Normalisation | None = None

    name = "champion"

    @property
    def n_classes(self) -> int:
        """Number of classes K of the model."""
        return self.predictor.n_classes

    def margin_zyx(self, spacing_um_zyx: Spacing) -> ZYX:
        """Return half a window: a voxel then has the context that the model was trained with."""
        return zyx(math.ceil(w / 2) for w in self.predictor.window_zyx(spacing_um_zyx))

    def label(self, image: Float32, spacing_um_zyx: Spacing) -> WeakLabel:
        """Label an image (float32 czyx) by the mean over the model's members; see `WeakLabeller`."""
        own = self.normalisation
        if own is not None and own.linear != self.linear:
            image = normalise(denormalise(image, own), with_linear(own, self.linear))
        return from_probabilities(predict_image(self.predictor, image, spacing_um_zyx, self.overlap, self.name))


def load_champion(url: str, classes: Sequence[str], volumes: Iterable[VolumeRecord]) -> tuple[ChampionLabeller, str]:
    """Load the champion of another campaign; only safetensors are read.

    Parameters
    ----------
    url : str
        The other campaign.
    classes : sequence of str
        Of this campaign, without the background.
    volumes : iterable of VolumeRecord
        Of this campaign; their channels count.

    Returns
    -------
    (ChampionLabeller, str)
        The model and its digest.

    Raises
    ------
    CampaignError, ConfigError, InferenceError
        If there is no campaign, or its model cannot be loaded.
    WeakLabelError
        If it has no champion, or one of other channels or classes.
    """
    other = Campaign.open(url)
    number = champion(other.generations())
    model = None if number is None else other.generation(number).model()
    if model is None:
        raise WeakLabelError("the campaign has no champion yet", where=url, todo="Name one that has run a generation")
    predictor = load_predictor(other.storage, model, other.config.inference, "auto")
    mine, theirs = classes, other.config.classes
    if len(mine) != predictor.n_classes or (len(mine) > 1 and tuple(mine) != tuple(theirs)):
        raise WeakLabelError(
            f"its classes are {', '.join(theirs)}, here they are {', '.join(mine)}",
            where=url,
            todo="Name a campaign with the same classes in the same order",
        )
    for volume in volumes:
        if volume.channels != predictor.in_channels:
            raise WeakLabelError(
                f"its model takes {predictor.in_channels} channels, volume '{volume.volume_id}' has {volume.channels}",
                where=url,
                todo="Name a campaign with the same channels",
            )
    linear = common_linear(v.normalisation for v in other.volumes.records(refused=True))
    return ChampionLabeller(predictor, other.config.inference.overlap, linear), model.digest
