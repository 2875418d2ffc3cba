"""What a delivery is made with, and what was delivered: the records in its folder."""

from __future__ import annotations

from typing import Literal

from rescueseg.campaign.record_file import RecordFile
from rescueseg.geometry import ZYX, Spacing
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import ModelReference, Record


class CleanUp(Record):
    """How the mask of one class is cleaned, in this order; 0 leaves a step out."""

    bridge_um: float = 0.0
    """Gaps up to this long between two pieces are bridged, where the probability reaches `bridge_probability`."""
    bridge_probability: float = 0.0
    spurs_um: float = 0.0
    """Protrusions thinner than this are taken off, unless they join two pieces."""
    smallest_um3: float = 0.0
    """Pieces smaller than this are dropped."""
    cavities_um3: float = 0.0
    """Cavities up to this large are filled."""
    largest: bool = False
    """Only the largest piece is kept."""


class Trial(Record):
    """One setting that the choice tried on the validation boxes."""

    what: str
    """In plain words, such as "threshold 0.45"."""
    score: float
    """Mean Dice over the classes, for thin structures the mean of Dice and clDice; panoptic quality for objects."""
    chosen: bool


class DeliveryRule(Record):
    """From maps to masks and objects: chosen once per model on the validation boxes, never on the test boxes."""

    model_digest: str
    truth_digest: str
    """Of the validation boxes and their truth; empty where there were none, and nothing was chosen."""
    temperature: float = 1.0
    """Probabilities are tempered first (`rescueseg.evaluation.temperature.temper`)."""
    threshold: float = 0.5
    """A voxel is foreground where the tempered probability of the background is below one minus this; its class is then the
    most probable of the others."""
    cleanup: tuple[CleanUp, ...]
    """Of classes 1…K."""
    objects: ObjectRule | None = None
    """None where no objects are made."""
    object_class: int = 1
    """Which class the objects are of; for the source "boundary" the class that is the boundary."""
    trials: tuple[Trial, ...] = ()


RULE = RecordFile("delivery", DeliveryRule)
"""In the folder of the generation or of the training."""


class Score(Record):
    """A figure of the delivered mask on the test boxes."""

    name: str
    """Such as "dice" or "ap50"."""
    most_likely: float | None
    """Of the most probable class alone."""
    rule: float | None
    """With temperature and threshold, nothing cleaned."""
    delivered: float | None
    """As delivered, cleaned."""


class ExportedFile(Record):
    """A file beside the OME-Zarr."""

    path: str
    """Below the delivery."""
    format: Literal["tiff", "nifti", "nrrd"]
    bytes: int


class DeliveredVolume(Record):
    """What was delivered of one volume; written last."""

    volume_id: str
    source: str
    """Where its image came from."""
    in_campaign: bool
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    digest: str
    """Of what its labels are made with but for corrections: model, volume, rule."""
    version: int = 1
    """Counts the corrections that were merged."""
    labels: tuple[str, ...]
    """Names of the label images in its OME-Zarr: "mask", and "objects"."""
    objects: int | None = None
    """How many."""
    files: tuple[ExportedFile, ...] = ()
    warnings: tuple[str, ...] = ()
    """What a person should know of it, such as how it differs from what the model has learned."""
    seconds: float = 0.0


class Delivery(Record):
    """The delivery as a whole."""

    campaign_url: str
    campaign_id: str = ""
    """By which it is known wherever it lies; empty for campaigns of earlier versions."""
    campaign_name: str
    classes: tuple[str, ...]
    model: ModelReference
    training: str = ""
    """Name of the training outside the loop that the model is of."""
    rule: DeliveryRule
    with_image: bool = True
    """Whether the images were copied beside the labels."""
    scores: tuple[Score, ...] = ()
    """On the test boxes of the volumes that were delivered; empty where there are none."""
    boxes: int = 0
    """How many those are."""
    queued: int = 0
    """Tickets that were added when places were last queued for review."""


DELIVERY = RecordFile("delivery", Delivery)
"""At the root of the delivery."""
