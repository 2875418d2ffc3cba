"""Where the maps of a volume lie, what they were made with, and which blocks are done.

Below a generation's folder::

    maps/<volume>.zarr/<quantity>/0       the array (level 0 of an OME-Zarr image), one shard per block
    maps/<volume>.inference.json          what the maps are made with: written when all arrays exist
    maps/<volume>.blocks/000012.json      one completion marker per block, written after its shards
    maps/<volume>.json                    the finished `MapReference`

`probability` is (K + 1, z, y, x), background first; the uncertainty maps are (z, y, x), `ensemble_variance` is there when
the model is an ensemble; what else a model says is (channels, z, y, x), the mean over its members; all in the dtype that
`inference.map_dtype` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zarr
from pydantic import ValidationError, model_validator

from rescueseg.campaign import GenerationFolder, check_id
from rescueseg.campaign.layout import MAPS, MAPS_BLOCKS, MAPS_PLAN, MAPS_RECORD, Place
from rescueseg.campaign.record_file import RecordFile
from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError, storage_errors
from rescueseg.geometry import ZYX, Box, Spacing, partition
from rescueseg.image_files.zarr_url import zarr_store
from rescueseg.inference.windows import WindowGrid
from rescueseg.models.predictor import PROBABILITY, Output
from rescueseg.records import MapReference, ModelReference, Record
from rescueseg.storage import Storage, digest_json
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import create_image

UNCERTAINTIES = ("predictive_entropy", "mutual_information", "mc_variance", "tta_variance")
QUANTITIES = (PROBABILITY, *UNCERTAINTIES)
"""Maps of every model."""
ENSEMBLE_VARIANCE = "ensemble_variance"
"""Map that an ensemble has beside them."""
RESERVED = (*QUANTITIES, ENSEMBLE_VARIANCE)
"""What no other output may be called."""

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

    @model_validator(mode="before")
    @classmethod
    def _without_factory(cls, data: Any) -> Any:
        """Leave out what plans before version 0.2 named: the function that loaded the predictor."""
        return {key: value for key, value in data.items() if key != "factory"} if isinstance(data, dict) else data

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the maps."""
        ensemble = () if self.networks == 1 else (ENSEMBLE_VARIANCE,)
        return (*QUANTITIES, *ensemble, *(output.name for output in self.outputs))

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the maps that have them, by name."""
        return {PROBABILITY: self.n_classes + 1} | {output.name: output.channels for output in self.outputs}

    def map_shape(self, quantity: str, shape_zyx: ZYX) -> tuple[int, ...]:
        """Return the shape of a map, or of a part of it."""
        return (self.channels[quantity], *shape_zyx) if quantity in self.channels else shape_zyx

    def lowest(self, quantity: str, highest: float) -> float:
        """Return the least value of a map: zero, but for components of vectors."""
        return -highest if any(o.name == quantity and o.kind == "flow" for o in self.outputs) else 0.0

    def to_json(self) -> Any:
        """Return a JSON-ready form; outputs are left out where there are none, so that old digests stay."""
        return self.model_dump(mode="json", exclude=None if self.outputs else {"outputs"})

    @property
    def identity(self) -> str:
        """Digest of what decides the voxels of the maps: not the blocks and the chunks."""
        exclude: dict[str, Any] = {"block_zyx": True, "chunk_zyx": True, "inference": {"block_voxels"}}
        exclude |= {} if self.outputs else {"outputs": True}
        return digest_json(self.model_dump(mode="json", exclude=exclude))

    @property
    def digest(self) -> str:
        """Digest of the whole plan, which every completion marker carries."""
        return digest_json(self.to_json() | {"factory": _FACTORY})

    @property
    def blocks(self) -> list[Box]:
        """The blocks in z, y, x order; a block is one shard of every map."""
        return partition(self.shape_zyx, self.block_zyx)

    @property
    def grid(self) -> WindowGrid:
        """The global window grid."""
        return WindowGrid(self.shape_zyx, self.window_zyx, self.inference.overlap)


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

    def _path(self, place: Place, *parts: str) -> str:
        name = check_id(self.volume_id, "volume id")
        return "/".join((place.path(generation=self.generation.number, volume=name), *parts))

    @property
    def _storage(self) -> Storage:
        return self.generation.storage

    @property
    def url(self) -> str:
        """URL of the OME-Zarr group that holds them."""
        return self._storage.url_of(self._path(MAPS))

    def plan(self) -> InferencePlan | None:
        """Return what the maps on disk are made with, None when there are none or another version made them."""
        path = self._path(MAPS_PLAN)
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
            The plan that holds: an earlier one of the same identity keeps its blocks.
        """
        earlier = self.plan()
        if earlier is not None and earlier.identity == plan.identity:
            return earlier
        for place in (MAPS_RECORD, MAPS_PLAN, MAPS_BLOCKS, MAPS):
            self._storage.remove(self._path(place))
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
                    attributes={"rescueseg": {"model": plan.model.digest, "classes": ["background", *classes]}},
                ),
            )
        self._storage.write_json(self._path(MAPS_PLAN), plan.to_json())
        return plan

    def mark(self, plan: InferencePlan, index: int, digest: str) -> None:
        """Mark a block as done; `digest` is the sha256 of its voxels in all maps."""
        marker = {"block": index, "box": plan.blocks[index].to_dict(), "digest": digest, "plan": plan.digest}
        self._storage.write_json(self._path(MAPS_BLOCKS, f"{index:06d}.json"), marker)

    def finished_blocks(self, plan: InferencePlan) -> dict[int, str]:
        """Return the digests of the blocks that are done, by index."""
        folder = self._path(MAPS_BLOCKS)
        names = [n for n in self._storage.list(folder) if n.endswith(".json") and not n.startswith(".")]
        markers = [self._storage.read_json(f"{folder}/{name}") for name in names]
        digest = plan.digest
        return {int(m["block"]): str(m["digest"]) for m in markers if m["plan"] == digest}

    def finish(self, reference: MapReference) -> None:
        """Write the reference to the finished maps, unless it is there."""
        if self.reference() != reference:
            self._storage.write_json(self._path(MAPS_RECORD), reference.to_json())

    def reference(self) -> MapReference | None:
        """Return the finished maps, None before they are complete."""
        path = self._path(MAPS_RECORD)
        if not self._storage.exists(path):
            return None
        return _REFERENCE.parse(self._storage.read_json(path), self._storage.path(path))

    def blocks(self) -> list[Box]:
        """Return the blocks of finished maps in z, y, x order: read by them, each shard is decoded once.

        Raises
        ------
        InferenceError
            If the maps are not complete.
        """
        plan = self.plan()
        if plan is None or self.reference() is None:
            raise self._incomplete()
        return plan.blocks

    def open(self, quantity: str) -> zarr.Array[Any]:
        """Open one finished map for reading.

        Parameters
        ----------
        quantity : str
            One of `QUANTITIES`: "probability" is (K + 1, z, y, x) with background first; "predictive_entropy" and
            "mutual_information" (nats), "mc_variance" and "tta_variance" are (z, y, x), as is the "ensemble_variance" of
            an ensemble. Or another output of the model, (channels, z, y, x).

        Returns
        -------
        zarr.Array
            float16 or float32, read-only; one shard per block of `blocks`.

        Raises
        ------
        InferenceError
            If there is no such map or the maps are not complete.
        """
        reference = self.reference()
        plan = None if reference else self.plan()
        planned = plan.quantities if plan else RESERVED
        quantities = reference.quantities if reference else planned
        if quantity not in quantities:
            raise InferenceError(f"no map '{quantity}'", where=self.volume_id, todo=f"Maps: {', '.join(quantities)}")
        if reference is None:
            raise self._incomplete()
        return self.open_array(quantity, mode="r")

    def open_array(self, quantity: str, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
        """Open the array of a map, finished or not; the block engine writes into it."""
        return zarr.open_array(store=zarr_store(self.url), path=f"{quantity}/0", mode=mode)

    def _incomplete(self) -> InferenceError:
        return InferenceError(
            f"the maps of generation {self.generation.number} are not complete",
            where=f"volume {self.volume_id}",
            todo="Run the inference of that generation; it goes on where it stopped",
        )
