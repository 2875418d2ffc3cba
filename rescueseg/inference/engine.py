"""The block engine: a whole volume through a predictor, in blocks, resumable, in bounded memory.

A block is one shard of every map. Its task gets references only, reads the block with the windows that reach into it,
and goes through these windows in ascending order: windows outer, members inner, the statistics of
`rescueseg.inference.uncertainty` per window, then blended with the Gaussian weights of `rescueseg.inference.windows`. A map is
thus the weighted mean, over the windows at a voxel, of each window's statistic: where windows overlap, the map of the
predictive entropy is the mean of entropies, not the entropy of the mean (which is never smaller).

Since the window grid is that of the volume, the order is fixed and all randomness is keyed by the window, the result
depends neither on the blocks nor on the workers. Memory depends on the block and the window, never on the volume.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from distributed import KilledWorker, as_completed

from rescueseg.campaign import Campaign
from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError, ServiceError, storage_errors
from rescueseg.geometry import Box
from rescueseg.inference.maps import (
    PROBABILITY,
    InferencePlan,
    finished_blocks,
    map_path,
    map_reference,
    open_array,
    prepare_maps,
    read_plan,
    write_marker,
)
from rescueseg.inference.uncertainty import MemberStatistics
from rescueseg.inference.windows import WindowGrid, choose_blocks
from rescueseg.models.predictor import Predictor, PredictorFactory
from rescueseg.models.registry import load_predictor
from rescueseg.progress import CountProgress
from rescueseg.randomness import window_key
from rescueseg.records import MapReference, ModelReference, VolumeRecord
from rescueseg.storage import digest_json
from rescueseg.volumes.normalise import normalise, read_box
from rescueseg.volumes.ome_zarr import choose_chunks, open_level

if TYPE_CHECKING:
    from distributed import Client

BATCH_VOXELS = 1_000_000
"""Voxels of the windows that go through the predictor together (at least one window)."""

Float32 = npt.NDArray[np.float32]
Result = TypeVar("Result")


def infer_volume(
    campaign: Campaign,
    model: ModelReference,
    volume_id: str,
    *,
    client: Client | None = None,
    progress: CountProgress | None = None,
    device: str = "auto",
    load: PredictorFactory = load_predictor,
) -> MapReference:
    """Predict one volume: mean probability and uncertainty maps, as OME-Zarr images.

    Blocks that an earlier, interrupted run finished are kept; maps made with another model, window or volume are
    discarded first.

    Parameters
    ----------
    campaign : Campaign
        The campaign; workers open it again by its URL.
    model : ModelReference
        The model; the maps go into its generation.
    volume_id : str
        The volume.
    client : distributed.Client, optional
        Where the blocks are computed; one after the other in this process when omitted.
    progress : callable, optional
        Called with (blocks done, blocks in all), at the start and after each block.
    device : str
        A torch device; "auto" takes the GPU where a worker sees one.
    load : callable
        Returns the predictor of (campaign, model, settings, device); a function that the workers can import.

    Returns
    -------
    MapReference
        Reference to the finished maps; `rescueseg.inference.maps.open_map` opens them.

    Raises
    ------
    InferenceError
        If the model does not fit the volume, yields NaNs, or a block keeps killing its workers.
    StorageError
        If the maps cannot be written.
    ServiceError
        If the Dask cluster goes away.
    """
    generation = model.generation
    new_plan = _call(client, make_plan, campaign.url, model, volume_id, load, device)
    plan = prepare_maps(campaign, generation, new_plan)
    digests = finished_blocks(campaign, generation, plan)
    total = len(plan.blocks)
    todo = [index for index in range(total) if index not in digests]
    report = progress or _ignore
    report(len(digests), total)
    for index, digest in _run_blocks(client, (campaign.url, generation, volume_id, plan.digest, load, device), todo):
        digests[index] = digest
        report(len(digests), total)
    reference = MapReference(
        generation=generation,
        volume_id=volume_id,
        model_digest=model.digest,
        quantities=plan.quantities,
        blocks=total,
        digest=digest_json([plan.digest, [digests[index] for index in range(total)]]),
    )
    if map_reference(campaign, generation, volume_id) != reference:
        campaign.storage.write_json(map_path(campaign, generation, volume_id, ".json"), reference.to_json())
    return reference


def _ignore(done: int, total: int) -> None:  # noqa: ARG001
    return


# on the driver --------------------------------------------------------------------------------------------------------


def _call(client: Client | None, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function here or on a worker, so that the driver need load no model."""
    if client is None:
        return function(*args)
    with _cluster_errors():
        result: Result = client.submit(function, *args, pure=False).result()
    return result


def _run_blocks(
    client: Client | None, reference: tuple[str, int, str, str, PredictorFactory, str], todo: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield (block index, digest) as blocks finish, in any order."""
    if client is None:
        for index in todo:
            yield index, run_block(*reference, index)
        return

    futures = [client.submit(run_block, *reference, index, pure=False) for index in todo]
    indices = {future.key: index for future, index in zip(futures, todo, strict=True)}
    try:
        with _cluster_errors():
            for future, digest in as_completed(futures, with_results=True):  # type: ignore[no-untyped-call]
                yield indices[future.key], digest
    finally:
        client.cancel([f for f in futures if not f.done()])  # type: ignore[no-untyped-call]


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn Dask's own errors into ours; those raised by a block pass through."""
    try:
        yield
    except KilledWorker as error:
        raise InferenceError(
            "a block killed every worker it was given to, most likely for want of memory",
            where=str(error.task),
            todo="Lower inference.block_voxels or raise cluster.memory, then run again: finished blocks are kept",
        ) from error
    except CancelledError as error:
        raise ServiceError(
            "the Dask cluster went away", todo="Start it again and rerun: finished blocks are kept"
        ) from error


# on a worker ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _predictor(
    campaign_url: str, model: ModelReference, inference: InferenceConfig, load: PredictorFactory, device: str
) -> Predictor:
    """Load a predictor once per process."""
    return load(Campaign.open(campaign_url), model, inference, device)


def make_plan(
    campaign_url: str, model: ModelReference, volume_id: str, load: PredictorFactory, device: str
) -> InferencePlan:
    """Return what the maps of a volume are to be made with: window, blocks, chunks.

    Raises
    ------
    InferenceError
        If the model's channels or classes are not those of the volume or the campaign.
    """
    campaign = Campaign.open(campaign_url)
    config, volume = campaign.config, campaign.volume(volume_id)
    predictor = _predictor(campaign_url, model, config.inference, load, device)
    for what, has, needs in (
        ("channels", predictor.in_channels, volume.channels),
        ("classes", predictor.n_classes, config.n_classes),
    ):
        if has != needs:
            raise InferenceError(
                f"the model has {has} {what}, {needs} are needed",
                where=f"volume {volume_id}",
                todo="Train a model for this campaign's volumes and classes",
            )
    window = predictor.window_zyx(volume.spacing_um_zyx)
    grid = WindowGrid(volume.shape_zyx, window, config.inference.overlap)
    chunk = choose_chunks(volume.shape_zyx)[0]
    return InferencePlan(
        model=model,
        volume_id=volume_id,
        volume_digest=digest_json([volume.digest, volume.normalisation.to_json()]),
        shape_zyx=volume.shape_zyx,
        spacing_um_zyx=volume.spacing_um_zyx,
        n_classes=config.n_classes,
        seed=config.seed,
        inference=config.inference,
        window_zyx=window,
        chunk_zyx=chunk,
        block_zyx=choose_blocks(grid, chunk, config.inference.block_voxels, config.cluster.workers),
        networks=predictor.networks,
    )


@lru_cache(maxsize=2)
def _context(
    campaign_url: str, generation: int, volume_id: str, plan_digest: str
) -> tuple[Campaign, InferencePlan, VolumeRecord]:
    campaign = Campaign.open(campaign_url)
    plan = read_plan(campaign, generation, volume_id)
    if plan is None or plan.digest != plan_digest:
        raise InferenceError(
            "another run replaced the maps", where=f"volume {volume_id}", todo="Let one run at a time infer a volume"
        )
    return campaign, plan, campaign.volume(volume_id)


def run_block(
    campaign_url: str,
    generation: int,
    volume_id: str,
    plan_digest: str,
    load: PredictorFactory,
    device: str,
    index: int,
) -> str:
    """Compute one block, write its shards, then its completion marker.

    Parameters
    ----------
    campaign_url : str
        The campaign.
    generation : int
        Generation of the model.
    volume_id : str
        The volume.
    plan_digest : str
        The plan that the maps on disk must be made with.
    load : callable
        Returns the predictor.
    device : str
        Where it runs.
    index : int
        The block.

    Returns
    -------
    str
        sha256 of the block's voxels in all maps.
    """
    campaign, plan, volume = _context(campaign_url, generation, volume_id, plan_digest)
    predictor = _predictor(campaign_url, plan.model, plan.inference, load, device)
    block = plan.blocks[index]
    maps = compute_box(campaign, plan, volume, predictor, block)
    digest = hashlib.sha256()
    dtype = np.dtype(plan.inference.map_dtype)
    with storage_errors(campaign.map_url(generation, volume_id)):
        for quantity in plan.quantities:
            values = maps.pop(quantity)
            np.clip(values, 0, 1 if quantity == PROBABILITY else np.finfo(dtype).max, out=values)
            voxels = values.astype(dtype, copy=False)
            digest.update(voxels.data)
            open_array(campaign, generation, volume_id, quantity, "r+")[(..., *block.slices)] = voxels
    write_marker(campaign, generation, plan, index, digest.hexdigest())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """The part of a window inside a block."""

    index: int
    window: Box
    inside: Box
    weights: Float32

    @classmethod
    def of(cls, grid: WindowGrid, index: int, block: Box) -> _Part:
        window = grid.box(index)
        inside = window.intersection(block)
        assert inside is not None, "every window of a block touches it"
        first = [max(0, o) for o in window.offset_zyx]
        z, y, x = (
            weights[o - f : o - f + s]
            for weights, o, f, s in zip(grid.weights(index), inside.offset_zyx, first, inside.shape_zyx, strict=True)
        )
        return cls(index, window, inside, z[:, None, None] * y[None, :, None] * x[None, None, :])


def compute_box(
    campaign: Campaign, plan: InferencePlan, volume: VolumeRecord, predictor: Predictor, block: Box
) -> dict[str, Float32]:
    """Return the maps of one box, float32 by quantity: the same values as in the maps of the whole volume."""
    grid = plan.grid
    read = grid.read_box(block)
    raw = read_box(open_level(campaign.image_url(plan.volume_id)), read)
    maps = {q: np.zeros(block.shape_zyx, np.float32) for q in plan.quantities}
    maps[PROBABILITY] = np.zeros((plan.n_classes + 1, *block.shape_zyx), np.float32)
    batch = max(1, BATCH_VOXELS // math.prod(plan.window_zyx))
    indices = grid.touching(block)
    while chunk := list(itertools.islice(indices, batch)):
        parts = [_Part.of(grid, index, block) for index in chunk]
        windows = np.stack(
            [normalise(raw[(..., *p.window.relative_to(read).slices)], volume.normalisation) for p in parts]
        )
        for part, statistics in zip(parts, _statistics(plan, predictor, windows, parts), strict=True):
            target = (..., *part.inside.relative_to(block).slices)
            for quantity in plan.quantities:
                values = statistics.pop(quantity)
                values *= part.weights
                maps[quantity][target] += values
    return maps


def predict_boxes(
    campaign: Campaign, model: ModelReference, volume_id: str, boxes: Iterable[Box], *, device: str = "auto"
) -> Iterator[dict[str, Float32]]:
    """Yield the maps of some boxes of a volume, computed here and stored nowhere; see `compute_box`.

    Raises
    ------
    InferenceError
        As `infer_volume`.
    """
    plan = make_plan(campaign.url, model, volume_id, load_predictor, device)
    predictor = _predictor(campaign.url, model, plan.inference, load_predictor, device)
    for box in boxes:
        yield compute_box(campaign, plan, campaign.volume(volume_id), predictor, box)


def _statistics(
    plan: InferencePlan, predictor: Predictor, windows: Float32, parts: Sequence[_Part]
) -> Iterator[dict[str, Float32]]:
    """Yield the statistics over all members, for each window its part inside the block."""
    accumulators = [MemberStatistics() for _ in parts]
    cuts = [(slice(None), *part.inside.relative_to(part.window).slices) for part in parts]
    keys = [window_key(plan.seed, plan.volume_id, part.index) for part in parts]
    expected = (len(parts), plan.n_classes + 1, *plan.window_zyx)
    for group, probabilities in predictor.members(windows, keys):
        if probabilities.shape != expected:
            raise InferenceError(
                f"the predictor gave an array of shape {probabilities.shape}, not {expected}",
                where=f"volume {plan.volume_id}, window {parts[0].index}",
                todo="Mend the predictor of this trainer",
            )
        with np.errstate(invalid="ignore"):
            for statistics, member, cut in zip(accumulators, probabilities, cuts, strict=True):
                statistics.add(group.symmetry, member[cut], group.network)
    for part, statistics in zip(parts, accumulators, strict=True):
        with np.errstate(invalid="ignore"):
            result = statistics.result()
            finite = np.isfinite(result[PROBABILITY].sum(dtype=np.float64))
        if not finite:
            raise InferenceError(
                "the model gave NaN or infinite probabilities",
                where=f"volume {plan.volume_id}, window {part.index} at {part.window}",
                todo="Look at the training loss of this generation; retrain with a lower training.learning_rate",
            )
        yield result
