"""The most doubtful places and objects of a delivery: where a person's look is worth most.

The score of a place is the mean predictive entropy over all of its voxels, not only those near the delivered foreground:
what the model has missed lies where nothing was delivered.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rescueseg.campaign import Campaign
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.merges import corrections
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box, Floats, Patch, box_bounds, zyx
from rescueseg.inference.box_means import box_sums, map_pieces, touching
from rescueseg.records import BoxField, Holdout, Record, VolumeRecord
from rescueseg.sampling.free_places import FreePlaces
from rescueseg.sampling.patches import candidates, patch_shape
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import digest_json

ENTROPY = "predictive_entropy"
PROOFREADING = "proofreading"
"""Stratum of the tickets that doubtful places become."""


class DoubtfulPlace(Record):
    """A patch of a delivered volume."""

    volume_id: str
    box: BoxField
    entropy: float
    """Mean predictive entropy over the patch, nats per voxel."""

    @property
    def patch(self) -> Patch:
        """The box with its volume."""
        return Patch(self.volume_id, self.box)


class PlacesToProofread(Record):
    """The most doubtful places of a delivery, for its page and viewers; kept because the maps may be removed."""

    digest: str
    """Of the volumes that they were looked for in, and of the versions of their labels."""
    places: tuple[DoubtfulPlace, ...]
    """The most doubtful first."""


PLACES = RecordFile("places", PlacesToProofread)
"""At the root of a delivery."""


class DoubtfulObject(Record):
    """An object of a delivered volume."""

    volume_id: str
    number: int
    centre_um_zyx: tuple[float, float, float]
    box: BoxField
    """Its bounding box, in voxels."""
    entropy: float
    """Mean predictive entropy over its voxels, nats."""


def doubtful_places(
    campaign: Campaign, sources: Sequence[SourceVolume], count: int, occupied: Iterable[Patch] = ()
) -> list[DoubtfulPlace]:
    """Return the most doubtful patches of delivered volumes, of which no two show the same place.

    They have the shape of the campaign's patches and lie on a grid of half a patch (see
    `rescueseg.sampling.patches.candidates`). Of volumes of the campaign, the guarded holdout is left out. The entropy is
    read in pieces of at most four million voxels, each once.

    Parameters
    ----------
    campaign : Campaign
        Whose people look at them. Its volumes must have been compared with each other.
    sources : sequence of SourceVolume
        The delivered volumes, of the campaign or not; their maps must be finished.
    count : int
        How many at most.
    occupied : iterable of Patch
        Patches that are left out: those that have a ticket.

    Returns
    -------
    list of DoubtfulPlace
        The most doubtful first; of equal ones the first by volume, z, y, x.

    Raises
    ------
    InferenceError
        If maps are not finished, or hold values that are not finite.
    CampaignError
        If the volumes were never compared.
    """
    records = {s.volume_id: s.volumes.record(s.volume_id) for s in sources}
    places, taken = _shared_places(campaign, records), list(occupied)
    boxes = {name: free_boxes(campaign, record, places, taken) for name, record in records.items()}
    scores = {s.volume_id: _mean_entropy(s, boxes[s.volume_id]) for s in sources}
    rows = [(name, row) for name in sorted(boxes) for row in range(len(boxes[name]))]
    rows.sort(key=lambda r: -scores[r[0]][r[1]])  # stable: equal ones stay in their order
    grid = FreePlaces({name: box_bounds(boxes[name]) for name in boxes if boxes[name]}, places)
    chosen = [rows[i] for i in grid.take_first(rows, count)]
    return [
        DoubtfulPlace(volume_id=name, box=boxes[name][row], entropy=round(float(scores[name][row]), 6))
        for name, row in chosen
    ]


def keep_places(campaign: Campaign, folder: DeliveryFolder, sources: Sequence[SourceVolume], count: int = 24) -> None:
    """Write the most doubtful places of a delivery beside it; the maps are not read again while its labels stay as they are.

    What people corrected is no longer doubtful. Of delivered volumes whose maps were removed, the places of before are kept.

    Parameters
    ----------
    campaign : Campaign
        Its patch size and holdout count.
    folder : DeliveryFolder
        The delivery.
    sources : sequence of SourceVolume
        The delivered volumes; their maps must be finished.
    count : int
        How many at most.

    Raises
    ------
    InferenceError
        If maps are not finished.
    CampaignError
        If the volumes were never compared.
    """
    delivered, known = folder.delivered(), folder.records.read(PLACES)
    digest = digest_json([[v.volume_id, v.digest, v.version] for v in delivered])
    if known is None or known.digest != digest:
        without = {v.volume_id for v in delivered} - {source.volume_id for source in sources}
        corrected = [Patch(v.volume_id, c.box) for v in delivered for c in corrections(folder, v.volume_id)]
        before = [
            place
            for place in (known.places if known else ())
            if place.volume_id in without and not _overlaps(place.patch, corrected)
        ]
        places = doubtful_places(campaign, sources, count, [*corrected, *(place.patch for place in before)])
        most = sorted([*before, *places], key=lambda place: -place.entropy)[:count]
        folder.records.write(PLACES, PlacesToProofread(digest=digest, places=tuple(most)))


def _overlaps(patch: Patch, others: Iterable[Patch]) -> bool:
    return any(patch.volume_id == other.volume_id and patch.box.intersects(other.box) for other in others)


def kept_places(folder: DeliveryFolder) -> tuple[DoubtfulPlace, ...]:
    """Return the most doubtful places that were kept beside a delivery; none where nobody looked for them."""
    known = folder.records.read(PLACES)
    return known.places if known else ()


def free_boxes(campaign: Campaign, record: VolumeRecord, places: SharedPlaces, occupied: Iterable[Patch]) -> list[Box]:
    """Return the boxes of a volume's grid that are clear of the guarded holdout and of `occupied`, z, y, x order.

    None in a volume of the campaign that its holdout does not cover yet: boxes may still be drawn anywhere in it.

    Parameters
    ----------
    campaign : Campaign
        Its settings and its holdout count.
    record : VolumeRecord
        The volume, of the campaign or not.
    places : SharedPlaces
        Which places of the volumes are the same.
    occupied : iterable of Patch
        In whichever volumes.
    """
    holdout = campaign.holdout()
    blocked = _blocked(campaign, holdout, record, places, occupied)
    return list(candidates(record, patch_shape(campaign.config, record, holdout), blocked))


def are_free(
    campaign: Campaign, sources: Sequence[SourceVolume], chosen: Sequence[DoubtfulPlace], occupied: Iterable[Patch]
) -> bool:
    """Tell whether places may be asked for still, as when more is known of what their volumes share; no map is read.

    Parameters
    ----------
    campaign : Campaign
        Its volumes must have been compared with each other.
    sources : sequence of SourceVolume
        The delivered volumes.
    chosen : sequence of DoubtfulPlace
        What `doubtful_places` returned before.
    occupied : iterable of Patch
        In whichever volumes.
    """
    records = {s.volume_id: s.volumes.record(s.volume_id) for s in sources}
    holdout, places, taken = campaign.holdout(), _shared_places(campaign, records), list(occupied)
    for place in chosen:
        blocked = _blocked(campaign, holdout, records[place.volume_id], places, taken)
        if any(place.box.intersects(box) for box in blocked):
            return False
        taken.append(place.patch)
    return True


def _blocked(
    campaign: Campaign, holdout: Holdout | None, record: VolumeRecord, places: SharedPlaces, occupied: Iterable[Patch]
) -> list[Box]:
    """Return where no place of a volume may lie: all of it, where boxes of the holdout may still be drawn in it."""
    name = record.volume_id
    if not (holdout is not None and holdout.covers(name)) and name in campaign.volumes.ids():
        return [Box((0, 0, 0), record.shape_zyx)]
    guarded = [] if holdout is None else holdout.guarded(name, places)
    return [*guarded, *places.boxes_in(name, occupied)]


def _shared_places(campaign: Campaign, delivered: dict[str, VolumeRecord]) -> SharedPlaces:
    """Return what the volumes of the campaign and the others share; the others are compared when they join it."""
    own = campaign.volumes.records(refused=True)
    names = {record.volume_id for record in own}
    places = campaign.volumes.shared_places(own)
    if names.issuperset(delivered):
        return places
    return campaign.volumes.relations().shared_places([*own, *(r for n, r in delivered.items() if n not in names)])


def _mean_entropy(source: SourceVolume, boxes: Sequence[Box]) -> Floats:
    """Return the mean entropy of each box, in the order of the boxes."""
    sums = np.zeros(len(boxes), dtype=np.float64)
    if not boxes:
        return sums
    starts, stops = box_bounds(boxes)
    entropy = source.maps.open(ENTROPY)
    for piece in map_pieces(source.maps, zyx(entropy.chunks)):
        index = touching(piece, starts, stops)
        if not len(index):
            continue
        voxels = np.asarray(entropy[piece.slices], dtype=np.float32)
        if not np.isfinite(voxels).all():
            raise InferenceError(
                f"the maps hold values that are not finite in {piece}",
                where=f"volume {source.volume_id}",
                todo="Delete the maps and run the inference again",
            )
        sums[index] += box_sums(voxels, piece.offset_zyx, starts[index], stops[index])
    return np.asarray(sums / np.prod(stops - starts, axis=1), dtype=np.float64)


# objects --------------------------------------------------------------------------------------------------------------

_COLUMNS = ("id", "mean_entropy", "z_um", "y_um", "x_um", "z0", "y0", "x0", "z1", "y1", "x1")
"""Of the table of objects that are read here."""


def doubtful_objects(folder: DeliveryFolder, volume_ids: Iterable[str], count: int) -> list[DoubtfulObject]:
    """Return the objects of the highest mean entropy, over several volumes; a table is read in parts.

    Parameters
    ----------
    folder : DeliveryFolder
        With the tables of objects of these volumes; one without a table has no objects.
    volume_ids : iterable of str
        The volumes.
    count : int
        How many at most.

    Returns
    -------
    list of DoubtfulObject
        The most doubtful first; of equal ones the first by volume and number.
    """
    best: list[DoubtfulObject] = []
    for name in sorted(volume_ids):
        path = table_path(name)
        if not folder.storage.exists(path):
            continue
        with folder.storage.fs.open(folder.storage.path(path), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=list(_COLUMNS)):
                rows = heapq.nsmallest(count, batch.to_pylist(), key=lambda r: (-r["mean_entropy"], r["id"]))
                best = sorted([*best, *(_object(name, row) for row in rows)], key=_order)[:count]
    return best


def table_path(volume_id: str) -> str:
    """Return where the table of a volume's objects lies below the delivery."""
    return f"tables/{volume_id}.parquet"


def _order(one: DoubtfulObject) -> tuple[float, str, int]:
    return -one.entropy, one.volume_id, one.number


def _object(volume_id: str, row: dict[str, Any]) -> DoubtfulObject:
    start, stop = ([int(row[f"{axis}{end}"]) for axis in "zyx"] for end in (0, 1))
    return DoubtfulObject(
        volume_id=volume_id,
        number=row["id"],
        centre_um_zyx=(row["z_um"], row["y_um"], row["x_um"]),
        box=Box.from_bounds(start, stop),
        entropy=row["mean_entropy"],
    )
