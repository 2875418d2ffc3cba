"""Where the maps of a volume lie, what they were made with, and which blocks are done.

Below a generation's folder::

    maps/<volume>.zarr/<quantity>/0       the array (level 0 of an OME-Zarr image), one shard per block
    maps/<volume>.inference.json          what the maps are made with: written when all arrays exist
    maps/<volume>.blocks/000012.json      one completion marker per block, written after its shards
    maps/<volume>.json                    the finished `MapReference`

`probability` is (K + 1, z, y, x), background first; the uncertainty maps are (z, y, x); all in the dtype that
`inference.map_dtype` names.
"""

from __future__ import annotations

from typing import Any

import zarr

from rescueseg.campaign import Campaign, check_id
from rescueseg.errors import InferenceError
from rescueseg.geometry import ZYX, Box, Spacing, partition
from rescueseg.records import MapReference, ModelReference, Record
from rescueseg.storage import digest_json

PROBABILITY = "probability"
UNCERTAINTIES = ("predictive_entropy", "mutual_information", "mc_variance", "tta_variance")
QUANTITIES = (PROBABILITY, *UNCERTAINTIES)


class InferencePlan(Record):
    """Everything the maps of one volume depend on, and how they are cut into blocks."""

    model: ModelReference
    factory: str
    """Importable predictor factory, as "package.module:function"."""
    device: str
    volume_id: str
    volume_digest: str
    """sha256 of the volume's record: voxels, spacing, normalisation."""
    shape_zyx: ZYX
    spacing_um_zyx: Spacing
    n_classes: int
    window_zyx: ZYX
    overlap: float
    mc_samples: int
    tta_symmetries: int
    seed: int
    map_dtype: str
    block_zyx: ZYX
    chunk_zyx: ZYX

    @property
    def identity(self) -> str:
        """Digest of what decides the voxels of the maps: not the blocks, the chunks or the device."""
        return digest_json(self.model_dump(mode="json", exclude={"block_zyx", "chunk_zyx", "device"}))

    @property
    def digest(self) -> str:
        """Digest of the whole plan, which every completion marker carries."""
        return digest_json(self.to_json())

    @property
    def blocks(self) -> list[Box]:
        """The blocks in z, y, x order; a block is one shard of every map."""
        return partition(self.shape_zyx, self.block_zyx)


def map_path(campaign: Campaign, generation: int, volume_id: str, *parts: str) -> str:
    """Return the path below the campaign of ``maps/<volume><parts[0]>/…``, such as ".inference.json"."""
    name = check_id(volume_id, "volume id") + (parts[0] if parts else ".zarr")
    return campaign.generation_path(generation, "maps", name, *parts[1:])


def read_plan(campaign: Campaign, generation: int, volume_id: str) -> InferencePlan | None:
    """Return what the maps on disk are made with, None when there are none."""
    path = map_path(campaign, generation, volume_id, ".inference.json")
    return InferencePlan.model_validate(campaign.storage.read_json(path)) if campaign.storage.exists(path) else None


def map_reference(campaign: Campaign, generation: int, volume_id: str) -> MapReference | None:
    """Return the finished maps of a volume in a generation, None before they are complete."""
    path = map_path(campaign, generation, volume_id, ".json")
    return MapReference.model_validate(campaign.storage.read_json(path)) if campaign.storage.exists(path) else None


def map_blocks(campaign: Campaign, generation: int, volume_id: str) -> list[Box]:
    """Return the blocks of finished maps in z, y, x order: read by them, each shard is decoded once.

    Raises
    ------
    InferenceError
        If the maps are not complete.
    """
    _require_complete(campaign, generation, volume_id)
    plan = read_plan(campaign, generation, volume_id)
    assert plan is not None, "a finished map always has its plan"
    return plan.blocks


def open_map(campaign: Campaign, generation: int, volume_id: str, quantity: str) -> zarr.Array[Any]:
    """Open one finished map for reading.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    generation : int
        Generation whose model made the map.
    volume_id : str
        The volume.
    quantity : str
        One of `QUANTITIES`: "probability" is (K + 1, z, y, x) with background first; "predictive_entropy" and
        "mutual_information" (nats), "mc_variance" and "tta_variance" are (z, y, x).

    Returns
    -------
    zarr.Array
        float16 or float32, read-only; one shard per block of `map_blocks`.

    Raises
    ------
    InferenceError
        If the quantity is unknown or the maps are not complete.
    """
    if quantity not in QUANTITIES:
        raise InferenceError(f"no map '{quantity}'", where=volume_id, todo=f"Maps: {', '.join(QUANTITIES)}")
    _require_complete(campaign, generation, volume_id)
    store = campaign.storage.zarr_store(map_path(campaign, generation, volume_id))
    return zarr.open_array(store=store, path=f"{quantity}/0", mode="r")


def _require_complete(campaign: Campaign, generation: int, volume_id: str) -> None:
    if not campaign.storage.exists(map_path(campaign, generation, volume_id, ".json")):
        raise InferenceError(
            f"the maps of generation {generation} are not complete",
            where=f"volume {volume_id}",
            todo="Run the inference of that generation first; it goes on where it stopped",
        )
