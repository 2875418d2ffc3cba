"""Where the maps of a volume lie, what they were made with, and which blocks are done.

Below a generation's folder::

    maps/<volume>.zarr/<quantity>/0       the array (level 0 of an OME-Zarr image), one shard per block
    maps/<volume>.inference.json          what the maps are made with: written when all arrays exist
    maps/<volume>.blocks/000012.json      one completion marker per block with the sums of its shards, written after them
    maps/<volume>.shared/                 while they are made, what blocks have computed for one another
    maps/<volume>.json                    the finished `MapReference`

`probability` is (K + 1, z, y, x), background first; the uncertainty maps are (z, y, x), `ensemble_variance` is there when
the model is an ensemble, `object_disagreement` where the query strategy needs it; what else a model says is (channels, z, y, x),
the mean over its members; all in the dtype that `inference.map_dtype` names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import ValidationError, model_validator

from rescueseg.campaign import GenerationFolder, check_id
from rescueseg.campaign.layout import MAPS, MAPS_BLOCKS, MAPS_PLAN, MAPS_RECORD, MAPS_SHARED, Place
from rescueseg.campaign.record_file import RecordFile
from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError, damaged, storage_errors
from rescueseg.geometry import ZYX, Box, Spacing, partition
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.predictor import PROBABILITY, Output
from rescueseg.records import BoxField, MapReference, ModelReference, Record
from rescueseg.storage import Storage, digest_json
from rescueseg.volumes.checked_array import CheckedArray, TableOf, open_checked
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import create_image
from rescueseg.volumes.shards import FileSum, FileTable, WrittenFiles, sum_of_file, sync_files, zarr_files

UNCERTAINTIES = ("predictive_entropy", "mutual_information", "mc_variance", "tta_variance")
QUANTITIES = (PROBABILITY, *UNCERTAINTIES)
"""Maps of every model."""
ENSEMBLE_VARIANCE = "ensemble_variance"
"""Map that an ensemble has beside them."""
OBJECT_DISAGREEMENT = "object_disagreement"
"""Map of how much the members disagree about objects, made where it is asked for; see `rescueseg.inference.object_disagreement`."""
RESERVED = (*QUANTITIES, ENSEMBLE_VARIANCE, OBJECT_DISAGREEMENT)
"""What no other output may be called."""

_MOST_MARKERS = 512
"""Markers kept of a map that is being read."""
_REFERENCE = RecordFile("maps", MapReference)
_FACTORY = "rescueseg.inference.predictor:load_predictor"
"""Plans before version 0.2 named it; in their digests for ever, so that the maps made then stay valid."""


class InferencePlan(Record):
    """Everything the maps of one volume depend on, and how they are cut into blocks."""

    model: ModelReference
    volume_id: str
    volume_digest: str
    """sha256 of the volume's voxels and normalisation."""
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    n_classes: int
    seed: int
    inference: InferenceConfig
    window_zyx: ZYX
    block_zyx: ZYX
    chunk_zyx: ZYX
    networks: int = 1
    """Networks of the ensemble."""
    outputs: tuple[Output, ...] = ()
    """What the model says beside the class probabilities."""
    object_disagreement: bool = False
    """Whether there is a map of it."""

    @model_validator(mode="before")
    @classmethod
    def _without_factory(cls, data: Any) -> Any:
        """Leave out what plans before version 0.2 named: the function that loaded the predictor."""
        return {key: value for key, value in data.items() if key != "factory"} if isinstance(data, dict) else data

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the maps."""
        ensemble = () if self.networks == 1 else (ENSEMBLE_VARIANCE,)
        objects = (OBJECT_DISAGREEMENT,) if self.object_disagreement else ()
        return (*QUANTITIES, *ensemble, *objects, *(output.name for output in self.outputs))

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the maps that have them, by name."""
        return {PROBABILITY: self.n_classes + 1} | {output.name: output.channels for output in self.outputs}

    def map_shape(self, quantity: str, shape_zyx: ZYX) -> tuple[int, ...]:
        """Return the shape of a map, or of a part of it."""
        return (self.channels[quantity], *shape_zyx) if quantity in self.channels else shape_zyx

    @property
    def map_bytes(self) -> int:
        """What the maps take on the disk at most: uncompressed."""
        channels = sum(self.channels.get(quantity, 1) for quantity in self.quantities)
        return math.prod(self.shape_zyx) * channels * np.dtype(self.inference.map_dtype).itemsize

    def lowest(self, quantity: str, highest: float) -> float:
        """Return the least value of a map: zero, but for components of vectors."""
        return -highest if any(o.name == quantity and o.kind == "flow" for o in self.outputs) else 0.0

    def to_json(self) -> Any:
        """Return a JSON-ready form; outputs, a way of the forward pass and the map of objects are left out where there are none.

        So digests of plans stay that earlier versions made.
        """
        exclude: dict[str, Any] = {} if self.outputs else {"outputs": True}
        exclude |= {"inference": {"forward"}} if self.inference.forward == "auto" else {}
        exclude |= {} if self.object_disagreement else {"object_disagreement": True}
        return self.model_dump(mode="json", exclude=exclude)

    @property
    def identity(self) -> str:
        """Digest of what decides the voxels of a map but for rounding: not the blocks and the chunks, nor which maps there are."""
        exclude: dict[str, Any] = {"block_zyx": True, "chunk_zyx": True, "inference": {"block_voxels", "forward"}}
        exclude |= {} if self.outputs else {"outputs": True}
        exclude |= {"object_disagreement": True}
        return digest_json(self.model_dump(mode="json", exclude=exclude))

    def serves(self, wanted: InferencePlan) -> bool:
        """Tell whether the maps of this plan hold all that another one asks for."""
        return self.identity == wanted.identity and self.object_disagreement >= wanted.object_disagreement

    @property
    def digest(self) -> str:
        """Digest of the whole plan, which every completion marker carries."""
        return digest_json(self.to_json() | {"factory": _FACTORY})

    @cached_property
    def blocks(self) -> list[Box]:
        """The blocks in z, y, x order; a block is one shard of every map."""
        return partition(self.shape_zyx, self.block_zyx)

    @cached_property
    def grid(self) -> WindowGrid:
        """The global window grid."""
        return WindowGrid(self.shape_zyx, self.window_zyx, self.inference.overlap)


class BlockMarker(Record):
    """Says that a block is done."""

    block: int
    box: BoxField
    digest: str
    """sha256 of its voxels in all maps."""
    plan: str
    """Digest of the plan that it was computed by."""
    files: dict[str, FileSum] | None = None
    """Its shards, below the folder of the maps; with the first block all metadata, too. None by earlier versions."""


_MARKER = RecordFile("marker", BlockMarker)


@dataclass(frozen=True)
class VolumeMaps:
    """The maps of one volume in one generation, finished or not.

    Parameters
    ----------
    generation : GenerationFolder
        Whose model made them, or will.
    volume_id : str
        The volume.
    """

    generation: GenerationFolder
    volume_id: str

    def path(self, place: Place, *parts: str) -> str:
        """Return a path of the maps below the campaign."""
        name = check_id(self.volume_id, "volume id")
        return "/".join((place.path(generation=self.generation.number, volume=name), *parts))

    @property
    def _storage(self) -> Storage:
        return self.generation.storage

    @property
    def url(self) -> str:
        """URL of the OME-Zarr group that holds them."""
        return self._storage.url_of(self.path(MAPS))

    def plan(self) -> InferencePlan | None:
        """Return what the maps on disk are made with, None when there are none or another version made them."""
        path = self.path(MAPS_PLAN)
        if not self._storage.exists(path):
            return None
        try:
            return InferencePlan.model_validate(self._storage.read_json(path))
        except ValidationError:
            return None

    def prepare(self, plan: InferencePlan, classes: Sequence[str]) -> InferencePlan:
        """Make the empty maps of a plan, or keep those that are there when they are made with the same.

        Maps made with anything else (another model, window, volume) are removed. The plan is written last: while there is
        none, whatever lies there counts as nothing, so a kill at any moment does no harm.

        Parameters
        ----------
        plan : InferencePlan
            What the maps are to be made with.
        classes : sequence of str
            Names of the classes, without the background.

        Returns
        -------
        InferencePlan
            The plan that holds: an earlier one of the same identity, with these maps or more, keeps its blocks.
        """
        earlier = self.plan()
        if earlier is not None and earlier.serves(plan):
            return earlier
        for place in (MAPS_RECORD, MAPS_PLAN, MAPS_BLOCKS, MAPS_SHARED, MAPS):
            self._storage.remove(self.path(place))
        with storage_errors(self.url):
            zarr.create_group(zarr_store(self.url), zarr_format=3)
        for quantity in plan.quantities:
            create_image(
                f"{self.url}/{quantity}",
                ImageLayout(
                    plan.map_shape(quantity, plan.shape_zyx),
                    plan.inference.map_dtype,
                    plan.spacing_um_zyx,
                    chunks=plan.chunk_zyx,
                    shards=plan.block_zyx,
                    name=quantity,
                    zstd_level=1,
                    attributes={"rescueseg": {"model": plan.model.digest, "classes": ["background", *classes]}},
                ),
            )
        sync_files(self._storage, self.path(MAPS), zarr_files(self._storage, self.path(MAPS)))
        self._storage.write_json(self.path(MAPS_PLAN), plan.to_json())
        return plan

    def write(self, quantity: str, box: Box, voxels: npt.NDArray[Any]) -> dict[str, FileSum]:
        """Write a block of one map, and return the sums of its shards."""
        written = WrittenFiles(self.url)
        with storage_errors(self.url):
            array = zarr.open_array(store=written.store(self.url), path=f"{quantity}/0", mode="r+", zarr_format=3)
            array[(..., *box.slices)] = voxels
        return written.sums

    def mark(self, plan: InferencePlan, index: int, digest: str, files: FileTable) -> None:
        """Mark a block as done, once its files outlast a power cut.

        Parameters
        ----------
        plan : InferencePlan
            What it was computed by.
        index : int
            Which block.
        digest : str
            sha256 of its voxels in all maps.
        files : mapping
            The sums of its shards in all maps.
        """
        folder, files = self.path(MAPS), dict(files)
        sync_files(self._storage, folder, files)
        if index == 0:
            names = ["zarr.json", *(f"{q}/{name}" for q in plan.quantities for name in ("zarr.json", "0/zarr.json"))]
            files |= {name: sum_of_file(self._storage, f"{folder}/{name}") for name in names}
        marker = BlockMarker(block=index, box=plan.blocks[index], digest=digest, plan=plan.digest, files=files)
        self._storage.write_json(self._marker_path(index), _MARKER.to_json(marker))

    def is_done(self, index: int) -> bool:
        """Tell whether a block of the plan on disk is done."""
        return self._storage.exists(self._marker_path(index))

    def shared_windows(self) -> Path | None:
        """Return the folder of windows that several blocks need; None where the maps do not lie on a disk."""
        return Path(self._storage.path(self.path(MAPS_SHARED))) if self._storage.is_local else None

    def _marker_path(self, index: int) -> str:
        return self.path(MAPS_BLOCKS, f"{index:06d}.json")

    def marker(self, plan: InferencePlan, index: int) -> BlockMarker:
        """Return what is known of a finished block.

        Raises
        ------
        StorageError
            If its marker is missing, damaged or of other maps.
        """
        path = self._marker_path(index)
        marker = _MARKER.parse(self._storage.read_json(path), self._storage.path(path))
        if (marker.block, marker.plan) != (index, plan.digest):
            raise damaged(self._storage.path(path), "it is of another block or of other maps")
        return marker

    def finished_blocks(self, plan: InferencePlan) -> dict[int, str]:
        """Return the digests of the blocks that are done, by index."""
        folder = self.path(MAPS_BLOCKS)
        names = [n for n in self._storage.list(folder) if n.endswith(".json") and not n.startswith(".")]
        paths = [f"{folder}/{name}" for name in names]
        markers = [_MARKER.parse(self._storage.read_json(path), self._storage.path(path)) for path in paths]
        digest = plan.digest
        return {m.block: m.digest for m in markers if m.plan == digest}

    def finish(self, reference: MapReference) -> None:
        """Write the reference to the finished maps, unless it is there."""
        if self.reference() != reference:
            self._storage.write_json(self.path(MAPS_RECORD), reference.to_json())

    def reference(self) -> MapReference | None:
        """Return the finished maps, None before they are complete."""
        path = self.path(MAPS_RECORD)
        if not self._storage.exists(path):
            return None
        return _REFERENCE.parse(self._storage.read_json(path), self._storage.name_of(path))

    def finished(self) -> MapReference:
        """Return the finished maps.

        Raises
        ------
        InferenceError
            If they are not complete.
        """
        reference = self.reference()
        if reference is None:
            raise self._incomplete()
        return reference

    def blocks(self) -> list[Box]:
        """Return the blocks of finished maps in z, y, x order: read by them, each shard is decoded once.

        Raises
        ------
        InferenceError
            If the maps are not complete.
        """
        plan = self.plan()
        if plan is None:
            raise self._incomplete()
        self.finished()
        return plan.blocks

    def open(self, quantity: str) -> CheckedArray:
        """Open one finished map for reading.

        Parameters
        ----------
        quantity : str
            One of `QUANTITIES`: "probability" is (K + 1, z, y, x) with background first; "predictive_entropy" and
            "mutual_information" (nats), "mc_variance" and "tta_variance" are (z, y, x), as is the "ensemble_variance" of
            an ensemble and the "object_disagreement" where it was asked for. Or another output of the model, (channels, z, y, x).

        Returns
        -------
        CheckedArray
            float16 or float32, read-only; one shard per block of `blocks`.

        Raises
        ------
        InferenceError
            If there is no such map or the maps are not complete.
        StorageError
            If a file is missing or damaged, here or when voxels are read.
        """
        return self.open_several((quantity,))[quantity]

    def open_several(self, wanted: Sequence[str]) -> dict[str, CheckedArray]:
        """Open several finished maps, by quantity, and read the markers of their blocks once; see `open`."""
        reference = self.reference()
        plan = None if reference else self.plan()
        planned = plan.quantities if plan else RESERVED
        quantities = reference.quantities if reference else planned
        for quantity in wanted:
            if quantity not in quantities:
                todo = f"Maps: {', '.join(quantities)}"
                raise InferenceError(f"no map '{quantity}'", where=self.volume_id, todo=todo)
        if reference is None:
            raise self._incomplete()
        plan = self.plan()
        if plan is None:
            if not self._storage.exists(self.path(MAPS_PLAN)):
                raise damaged(self._storage.path(self.path(MAPS_PLAN)), "it is missing")
            return {quantity: open_checked(self.url, f"{quantity}/0", lambda _: None) for quantity in wanted}
        tables = self._tables(plan)
        return {quantity: self._open(plan, quantity, tables) for quantity in wanted}

    def open_planned(self, plan: InferencePlan, quantity: str) -> CheckedArray:
        """Open a map of which not all blocks need be done; only those that are can be read."""
        return self._open(plan, quantity, self._tables(plan))

    def _open(self, plan: InferencePlan, quantity: str, tables: TableOf) -> CheckedArray:
        array = open_checked(self.url, f"{quantity}/0", tables)
        return array.require(plan.map_shape(quantity, plan.shape_zyx), plan.inference.map_dtype)

    def _tables(self, plan: InferencePlan) -> TableOf:
        """Return what finds the list that a file of the maps stands in: in the marker of its block."""
        counts = [math.ceil(n / b) for n, b in zip(plan.shape_zyx, plan.block_zyx, strict=True)]

        @lru_cache(maxsize=_MOST_MARKERS)
        def files(index: int) -> dict[str, FileSum] | None:
            return self.marker(plan, index).files

        def table_of(key: str) -> FileTable | None:
            parts = key.split("/c/")
            if len(parts) == 1:
                return files(0)
            z, y, x = (int(number) for number in parts[1].split("/")[-3:])
            return files((z * counts[1] + y) * counts[2] + x)

        return table_of

    def _incomplete(self) -> InferenceError:
        return InferenceError(
            f"the maps of generation {self.generation.number} are not complete",
            where=f"volume {self.volume_id}",
            todo="Run the inference of that generation; it goes on where it stopped",
        )
