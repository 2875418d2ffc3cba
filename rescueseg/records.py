"""The references that cross process boundaries: ids, boxes, digests; never arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from rescueseg.errors import CampaignError
from rescueseg.geometry import ZYX, Box, Patch, Spacing
from rescueseg.shared_places import IDENTITY, GridMap, SharedPlaces

Part = Literal["validation", "test"]
Purpose = Literal["pool", "validation", "test"]
SURE_SHARE = 0.9
"""Of equal voxels among those compared: where fewer are, they may be the few that a rescaling left alone."""
LabelType = Literal["semantic", "instance"]

BoxField = Annotated[
    Box,
    BeforeValidator(lambda value: value if isinstance(value, Box) else Box.from_dict(value)),
    PlainSerializer(lambda box: box.to_dict()),
]


class Record(BaseModel):
    """A frozen record that goes to JSON and back."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def to_json(self) -> dict[str, JsonValue]:
        """Return a JSON-ready form."""
        return self.model_dump(mode="json")


class Normalisation(Record):
    """Intensity scaling of a domain: subtract mean, divide by std; for what is far off, see `linear`."""

    low: float
    high: float
    mean: float
    std: float
    linear: float = 0.0
    """Standard deviations from the mean (or to `low` and `high`, where that is farther, up to three times as many) after which a
    value grows by its logarithm alone. 0: it is clipped to [low, high], as in volumes that an earlier version imported."""
    per_channel: tuple[Normalisation, ...] = ()
    """One scaling for each channel where the image has several; the fields above then pool them."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `linear` out where it is 0, so that digests of earlier versions stay."""
        return {key: field for key, field in handler(self).items() if key != "linear" or self.linear}


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
    """sha256 of what was imported, image, truth and spacing: a rerun of the import is known by it."""
    truth: LabelType | None = None
    """Kind of ground truth stored with the volume, None when there is none."""
    normalisation: Normalisation
    hints: dict[str, str] = {}
    """What the file's metadata say of microscope, objective and preprocessing; see `rescueseg.image_files.hints`."""
    placement: dict[str, Any] | None = None
    """How its grid lies in the space of its file; see `rescueseg.image_files.placement.Placement`."""
    refused: str = ""
    """Why the volume may not be used, in one sentence; empty for a usable one. See `rescueseg.volumes.consistency`."""
    files: str = ""
    """sha256 of the list of its image's files; empty where an earlier version imported it. See `rescueseg.volumes.opening`."""


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


class Relation(Record):
    """Two volumes that show the same piece of the specimen, and how they lie to each other."""

    one: str
    other: str
    axes: ZYX
    """These four say where `other` lies in `one`: see `rescueseg.shared_places.GridMap`."""
    steps: tuple[float, float, float]
    start: tuple[float, float, float]
    tolerance: tuple[float, float, float]
    found: Literal["equal voxels", "near copy"]
    equal_share: float = 0.0
    """Of the voxels compared, where equal ones were found."""
    distinct: bool = False
    """Whether a person declared a near copy to be another specimen; never so where voxels are equal."""

    @property
    def grid(self) -> GridMap:
        """Where `other` lies in `one`."""
        return GridMap(self.axes, self.steps, self.start, self.tolerance)

    @property
    def sure(self) -> bool:
        """Whether it says how all of the two lie: few equal voxels may be those that a rescaling left as they were."""
        return self.found == "near copy" or self.equal_share >= SURE_SHARE


class Relations(Record):
    """What the comparison of a campaign's volumes found."""

    compared: dict[str, str] = {}
    """Digest by volume id: all these were compared with each other."""
    relations: tuple[Relation, ...] = ()
    through: tuple[tuple[str, str], ...] = ()
    """Pairs of these in which near copies were not looked for, because relations with other volumes connect them."""

    def uncompared(self, volumes: Sequence[VolumeRecord]) -> list[str]:
        """Return the volumes of which nobody knows yet what they share with the others, by id.

        A single volume shares nothing. One with the digest of a compared volume shares what that does.
        """
        known = {v.digest for v in volumes if v.digest and self.compared.get(v.volume_id) == v.digest}
        if len({v.digest or v.volume_id for v in volumes}) < 2:
            return []
        unknown = {v.volume_id for v in volumes if v.digest not in known}
        return sorted(unknown.union(*self.open_pairs(volumes)))

    def open_pairs(self, volumes: Sequence[VolumeRecord]) -> list[tuple[str, str]]:
        """Return the pairs of these volumes in which near copies have to be looked for, as nothing connects them any more."""
        digests = {v.volume_id: v.digest for v in volumes}
        pairs = [p for p in self.through if all(v in digests and self.compared.get(v) == digests[v] for v in p)]
        groups = self.groups(volumes) if pairs else {}
        return [(one, other) for one, other in pairs if groups[one] != groups[other]]

    def groups(self, volumes: Sequence[VolumeRecord]) -> dict[str, str]:
        """Return, by volume id, one volume of those that relations connect for certain."""
        certain = self.model_copy(update={"relations": tuple(r for r in self.relations if r.sure)})
        return certain.shared_places(volumes).groups()

    def shared_places(self, volumes: Sequence[VolumeRecord]) -> SharedPlaces:
        """Return which places of these volumes are the same.

        Volumes of one digest count as copies even if they were never compared; what a person declared distinct counts
        as such, and so does a volume that was compared under another digest.

        Parameters
        ----------
        volumes : sequence of VolumeRecord
            All of the campaign, refused ones too.
        """
        digests = {v.volume_id: v.digest for v in volumes}
        links = [
            (r.one, r.other, r.grid)
            for r in self.relations
            if not r.distinct and all(v in digests and self.compared.get(v) == digests[v] for v in (r.one, r.other))
        ]
        first: dict[str, str] = {}
        links += [
            (copy_of, v.volume_id, IDENTITY)
            for v in volumes
            if v.digest and (copy_of := first.setdefault(v.digest, v.volume_id)) != v.volume_id
        ]
        return SharedPlaces({v.volume_id: v.shape_zyx for v in volumes}, links)


class HoldoutBox(Record):
    """One frozen box of the holdout."""

    volume_id: str
    box: BoxField
    part: Part
    stratum: str
    reason: str | None = None
    """The numbers that spoke for its stratum; None in holdouts frozen before they were kept."""
    share: float | None = None
    """Written by versions before 0.2; not used."""

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
    whole: tuple[str, ...] | None = None
    """Volumes held out whole: nothing that they show is offered or trained on, inside their boxes or beside them."""
    later: tuple[HoldoutBox, ...] | None = None
    """Boxes that people are asked to annotate after the first generations: held out like the others from the start, and
    judged by once they are annotated. None where all were asked for at once."""

    def to_json(self) -> Any:
        """Return a JSON-ready form; what was not kept then is left out, so that old digests stay."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def all_boxes(self) -> tuple[HoldoutBox, ...]:
        """The boxes, and those that are annotated later."""
        return self.boxes + (self.later or ())

    def continues(self, frozen: Holdout) -> bool:
        """Tell whether this only adds to a frozen holdout: boxes, or volumes held out whole."""
        added = set(frozen.boxes) <= set(self.boxes) and set(frozen.whole or ()) <= set(self.whole or ())
        return added and set(frozen.all_boxes) <= set(self.all_boxes) and frozen.guard_zyx == self.guard_zyx

    def with_annotated(self, places: Collection[Patch]) -> Holdout:
        """Return the holdout with those of the later boxes that lie in `places`, where there is a truth now, among its boxes."""
        new = tuple(box for box in self.later or () if box.patch in places)
        rest = tuple(box for box in self.later or () if box.patch not in places)
        return self.model_copy(update={"boxes": self.boxes + new, "later": rest or None}) if new else self

    def covers(self, volume_id: str) -> bool:
        """Tell whether it was drawn with a volume in view; one written by hand says nothing of it."""
        return not self.volumes or volume_id in self.volumes

    def of(self, volume_id: str, places: SharedPlaces, part: Part | None = None) -> list[Box]:
        """Return where the boxes of a part lie in a volume, whatever volume they were drawn in.

        Without a part, what must not be read: the boxes of both, the later ones too, and all that volumes held out whole show.
        """
        if part is None:
            return places.boxes_in(volume_id, [*self._whole(places), *(b.patch for b in self.all_boxes)])
        return places.boxes_in(volume_id, [b.patch for b in self.boxes if b.part == part])

    def guarded(self, volume_id: str, places: SharedPlaces) -> list[Box]:
        """Return what must not be read of a volume, with the guard band of the boxes."""
        return places.boxes_in(volume_id, [*self._whole(places), *(b.patch for b in self.all_boxes)], self.guard_zyx)

    def _whole(self, places: SharedPlaces) -> list[Patch]:
        if gone := [name for name in self.whole or () if name not in places.shapes]:
            raise CampaignError(
                f"the volume '{gone[0]}' is held out whole, and its record is gone: nobody can tell what shows the same",
                where="holdout.json",
                todo=f"Restore volumes/{gone[0]}.json and its image",
            )
        return [Patch(name, Box((0, 0, 0), places.shapes[name])) for name in self.whole or ()]


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
    instances: str | None = None
    """Path of the objects' array below the campaign; None where classes were annotated, and in snapshots that were made
    before it was kept."""
    instances_digest: str | None = None

    def to_json(self) -> Any:
        """Return a JSON-ready form; what was not kept then is left out, so that old digests stay."""
        return self.model_dump(mode="json", exclude_none=True)


class Snapshot(Record):
    """The immutable training set of one generation."""

    generation: int
    items: tuple[SnapshotItem, ...]
    n_classes: int
    holdout_digest: str
    digest: str
    """sha256 over items, classes and holdout; see `rescueseg.campaign.snapshot.make_snapshot`."""

    def to_json(self) -> Any:
        """Return a JSON-ready form; see `SnapshotItem.to_json`."""
        return self.model_dump(mode="json", exclude_none=True)


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
