"""The references that cross process boundaries: ids, boxes, digests; never arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from rescueseg.geometry import ZYX, Box, Patch, Spacing

Part = Literal["validation", "test"]
Purpose = Literal["pool", "validation", "test"]
LabelType = Literal["semantic", "instance"]

BoxField = Annotated[
    Box,
    BeforeValidator(lambda value: value if isinstance(value, Box) else Box.from_dict(value)),
    PlainSerializer(lambda box: box.to_dict()),
]


class Record(BaseModel):
    """A frozen record that goes to JSON and back."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def to_json(self) -> Any:
        """Return a JSON-ready form."""
        return self.model_dump(mode="json")


class Normalisation(Record):
    """Intensity scaling of a domain: clip to [low, high], subtract mean, divide by std."""

    low: float
    high: float
    mean: float
    std: float
    per_channel: tuple[Normalisation, ...] = ()
    """One scaling for each channel where the image has several; the fields above then pool them."""


class VolumeRecord(Record):
    """One volume of the campaign."""

    volume_id: str
    domain: str
    """Acquisition group: same microscope, objective, bit depth, spacing."""
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    channels: int
    dtype: str
    source: str
    """File name it came from."""
    digest: str
    """sha256 of the imported voxels."""
    truth: LabelType | None = None
    """Kind of ground truth stored with the volume, None when there is none."""
    normalisation: Normalisation
    hints: dict[str, str] = {}
    """What the file's metadata say of microscope, objective and preprocessing; see `rescueseg.volumes.hints`."""
    refused: str = ""
    """Why the volume may not be used, in one sentence; empty for a usable one. See `rescueseg.volumes.consistency`."""


class Domain(Record):
    """An acquisition group: what its volumes are resampled and normalised to."""

    name: str
    spacing_um_zyx: Spacing
    """Volumes of another spacing are resampled to it."""
    normalisation: Normalisation
    """Measured over all its volumes, on the intensity scale of the first accepted one."""
    volumes: dict[str, Normalisation]
    """By volume id: the domain's normalisation, mapped to the volume's own intensity scale where that differs."""


class Domains(Record):
    """All domains of a campaign, and the volumes that are in none because they were refused."""

    domains: tuple[Domain, ...] = ()
    refused: dict[str, str] = {}
    """Reason by volume id."""

    def of(self, volume_id: str) -> Domain | None:
        """Return the domain of a volume, None when it has none."""
        return next((d for d in self.domains if volume_id in d.volumes), None)


def same_image(images: Mapping[str, str], one: str, other: str) -> bool:
    """Tell whether two volumes hold the same voxels: one volume, or copies under two names.

    Parameters
    ----------
    images : mapping
        Digest of the voxels by volume id, as `Campaign.image_digests` returns it.
    one, other : str
        Volume ids.

    Examples
    --------
    >>> images = {"stack": "a1b2", "copy": "a1b2", "other": "c3d4"}
    >>> same_image(images, "stack", "copy"), same_image(images, "stack", "other")
    (True, False)
    """
    return one == other or (bool(images.get(one)) and images[one] == images.get(other))


class HoldoutBox(Record):
    """One frozen box of the holdout."""

    volume_id: str
    box: BoxField
    part: Part
    stratum: str
    reason: str | None = None
    """The numbers that spoke for its stratum; None in holdouts frozen before they were kept."""
    share: float | None = None
    """Share of all places that its stratum stands for: boxes over-represent the hard, and this weighs them back."""

    @property
    def patch(self) -> Patch:
        """The box with its volume."""
        return Patch(self.volume_id, self.box)


class Holdout(Record):
    """The frozen holdout of a campaign; it may only grow."""

    boxes: tuple[HoldoutBox, ...]
    guard_zyx: ZYX
    volumes: tuple[str, ...] = ()
    """Volumes it was drawn from, whether a box fell into them or not."""
    patch_zyx: dict[str, ZYX] | None = None
    """Patch shape of each volume, fixed when its boxes were; None in holdouts frozen before it was kept."""

    def to_json(self) -> Any:
        """Return a JSON-ready form; what was not kept then is left out, so that old digests stay."""
        return self.model_dump(mode="json", exclude_none=True)

    def of(self, volume_id: str, part: Part | None = None, images: Mapping[str, str] = {}) -> list[Box]:
        """Return the boxes in one volume, and in its copies by `images`, of one part or of both."""
        return [b.box for b in self.boxes if same_image(images, b.volume_id, volume_id) and part in (None, b.part)]

    def guarded(self, volume_id: str, images: Mapping[str, str] = {}) -> list[Box]:
        """Return the boxes in one volume, and in its copies by `images`, with their guard band."""
        return [box.expand(self.guard_zyx) for box in self.of(volume_id, images=images)]


class SnapshotItem(Record):
    """One accepted annotation in a training set."""

    ticket_id: str
    volume_id: str
    box: BoxField
    read_box: BoxField
    """What training may read of the image: the patch and its context, clear of the holdout."""
    annotation_id: str
    labels: str
    """Path of the label array below the campaign."""
    labels_digest: str


class Snapshot(Record):
    """The immutable training set of one generation."""

    generation: int
    items: tuple[SnapshotItem, ...]
    n_classes: int
    holdout_digest: str
    digest: str
    """sha256 over items, classes and holdout."""


class ModelReference(Record):
    """A trained model: a folder below the campaign and its digest."""

    generation: int
    trainer: str
    path: str
    digest: str
    """sha256 of the weights and of the description beside them."""


class MapReference(Record):
    """Finished probability and uncertainty maps of one volume in one generation."""

    generation: int
    volume_id: str
    model_digest: str
    quantities: tuple[str, ...]
    blocks: int
    """Number of blocks, each one shard of every map."""
    digest: str
    """sha256 over the voxels of all maps, block by block."""


class QueriedPatch(Record):
    """One patch chosen by a query strategy."""

    volume_id: str
    box: BoxField
    score: float
    stratum: str = "query"
    reason: str = ""


class LabelReference(Record):
    """A stored label array: its path below the campaign and the sha256 of its voxels."""

    path: str
    digest: str


class AcceptedAnnotation(Record):
    """The accepted labels of a ticket: what a snapshot is made of."""

    ticket_id: str
    volume_id: str
    box: BoxField
    purpose: Purpose
    generation: int
    stratum: str
    annotation_id: str
    version: int
    labels: str
    """Path of the label array below the campaign."""
    labels_digest: str
    annotator: str
    tool: str
    seconds: float
    voxels_corrected: int
    instances: str | None = None
    """Path of the objects' array below the campaign, in campaigns that annotate instances."""
    instances_digest: str | None = None

    @property
    def label(self) -> LabelReference:
        """Where the labels lie, and their digest."""
        return LabelReference(path=self.labels, digest=self.labels_digest)

    @property
    def patch(self) -> Patch:
        """The box with its volume."""
        return Patch(self.volume_id, self.box)
