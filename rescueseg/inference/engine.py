"""The block engine: a whole volume through a predictor, in blocks, resumable, in bounded memory.

A block is one shard of every map. Its task gets references only, reads what the windows hold that reach into it, and goes
through these windows in ascending order: windows outer, members inner, the statistics of `rescueseg.inference.uncertainty` per
window, then blended with the Gaussian weights of `rescueseg.inference.windows`, all on the device of the network. A map is
thus the weighted mean, over the windows at a voxel, of each window's statistic: where windows overlap, the map of the
predictive entropy is the mean of entropies, not the entropy of the mean (which is never smaller).

A window that reaches into several blocks is computed by the first of them, which leaves the others their parts
(`rescueseg.inference.shared_windows`). Of the blocks that a worker has at a time one is computed, while others read and write.

Since the window grid is that of the volume, the order is fixed and all randomness is keyed by the window, the result
depends neither on the blocks nor on the workers (in float32, where nothing can be shared, but for rounding). Memory depends
on the block and the window, never on the volume.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zarr

from rescueseg.campaign import Campaign, GenerationFolder, VolumeFolder
from rescueseg.config import InferenceConfig
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box
from rescueseg.inference.boxes import BoxWork, Float32, WindowStatistics, batch_size
from rescueseg.inference.maps import RESERVED, InferencePlan, VolumeMaps
from rescueseg.inference.quick_objects import object_output
from rescueseg.inference.shared_windows import SharedWindows, new_run
from rescueseg.inference.windows import WindowGrid, choose_blocks, spread
from rescueseg.models.predictor import (
    EAGER,
    PROBABILITY,
    Output,
    Predictor,
    PredictorFactory,
    class_probabilities,
    forward_of,
)
from rescueseg.models.registry import load_predictor, resolve_device
from rescueseg.progress import CountProgress
from rescueseg.records import MapReference, ModelReference, VolumeRecord
from rescueseg.services.dask_blocks import call, each_block
from rescueseg.storage import Storage, digest_json
from rescueseg.volumes.image_layout import choose_chunks
from rescueseg.volumes.opening import open_image
from rescueseg.volumes.shards import FileSum
from rescueseg.voxels.peaks import find_peaks

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class InferenceJob:
    """What a worker is told of the maps of one volume: settings and where everything lies; it can be pickled.

    Parameters
    ----------
    model : ModelReference
        The model; the maps lie in the folder of its generation.
    models_url : str
        Storage of the model's files.
    volume_id : str
        The volume.
    volumes_url : str
        Storage of the volume: a campaign, or the work folder of a delivery.
    maps_url : str
        Storage of the maps.
    classes : tuple of str
        Without the background.
    seed, workers : int
        The campaign's, and that of the cluster.
    inference : InferenceConfig
        How it is predicted.
    load : callable
        Returns the predictor of (storage of the model, model, settings, device); a function that the workers can import.
    device : str
        A torch device; "auto" takes the GPU where a worker sees one.
    object_disagreement : bool
        Whether there is to be a map of how much the members disagree about objects.
    """

    model: ModelReference
    models_url: str
    volume_id: str
    volumes_url: str
    maps_url: str
    classes: tuple[str, ...]
    seed: int
    workers: int
    inference: InferenceConfig
    load: PredictorFactory = load_predictor
    device: str = "auto"
    object_disagreement: bool = False

    @property
    def maps(self) -> VolumeMaps:
        """The maps, made or not."""
        return VolumeMaps(GenerationFolder.of(Storage(self.maps_url), self.model.generation), self.volume_id)

    @property
    def volume(self) -> VolumeRecord:
        """The volume's record."""
        return VolumeFolder(Storage(self.volumes_url)).record(self.volume_id)

    @classmethod
    def of(cls, campaign: Campaign, model: ModelReference, volume_id: str) -> InferenceJob:
        """Return the job for a volume of a campaign, whose maps go into the model's generation."""
        config, url = campaign.config, campaign.url
        classes, workers = tuple(config.classes), config.cluster.workers
        return cls(model, url, volume_id, url, url, classes, config.seed, workers, config.inference)


def infer_volume(
    campaign: Campaign,
    model: ModelReference,
    volume_id: str,
    *,
    client: Client | None = None,
    progress: CountProgress | None = None,
    device: str = "auto",
    load: PredictorFactory = load_predictor,
    object_disagreement: bool = False,
) -> MapReference:
    """Predict one volume of a campaign; the maps go into the model's generation. See `infer` and `InferenceJob`."""
    job = InferenceJob.of(campaign, model, volume_id)
    return infer(replace(job, load=load, device=device, object_disagreement=object_disagreement), client, progress)


def infer(job: InferenceJob, client: Client | None = None, progress: CountProgress | None = None) -> MapReference:
    """Predict one volume: mean probability and uncertainty maps, as OME-Zarr images.

    Blocks that an earlier, interrupted run finished are kept; maps made with another model, window or volume are
    discarded first.

    Parameters
    ----------
    job : InferenceJob
        Model, volume, settings.
    client : distributed.Client, optional
        Where the blocks are computed; one after the other in this process when omitted.
    progress : callable, optional
        Called with (blocks done, blocks in all), at the start and after each block.

    Returns
    -------
    MapReference
        Reference to the finished maps; `rescueseg.inference.maps.VolumeMaps` opens them.

    Raises
    ------
    InferenceError
        If the model does not fit the volume, yields NaNs, or a block keeps killing its workers.
    StorageError
        If the maps cannot be written.
    ServiceError
        If the Dask cluster goes away.
    """
    maps = job.maps
    plan = maps.prepare(call(client, make_plan, job), job.classes)
    digests = maps.finished_blocks(plan)
    total = len(plan.blocks)
    todo = [index for index in range(total) if index not in digests]
    report = progress or _ignore
    report(len(digests), total)
    root = maps.shared_windows()
    run = new_run(root) if root is not None and todo else ""
    for index, digest in each_block(client, run_block, (job, plan.digest, run), spread(todo, job.workers)):
        digests[index] = digest
        report(len(digests), total)
    if root is not None:
        shutil.rmtree(root, ignore_errors=True)
    reference = MapReference(
        generation=job.model.generation,
        volume_id=job.volume_id,
        model_digest=job.model.digest,
        quantities=plan.quantities,
        blocks=total,
        digest=digest_json([plan.digest, [digests[index] for index in range(total)]]),
    )
    maps.finish(reference)
    return reference


def _ignore(done: int, total: int) -> None:  # noqa: ARG001
    return


_USUAL_CHANNELS = 8
"""Of maps; where a model says more of each voxel, blocks are smaller, for all that it says is in memory at once."""
_TORCH_TYPES = {"float16": torch.float16, "float32": torch.float32}
_LOADING, _COMPUTING = threading.Lock(), threading.Lock()
"""Held by the block that loads the model in this process, and by the one that is computed."""

# on a worker ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _predictor(
    models_url: str, model: ModelReference, inference: InferenceConfig, load: PredictorFactory, device: str
) -> Predictor:
    """Load a predictor once per process."""
    return load(Storage(models_url), model, inference, device)


def _predictor_of(job: InferenceJob) -> Predictor:
    return _predictor(job.models_url, job.model, job.inference, job.load, job.device)


def make_plan(job: InferenceJob) -> InferencePlan:
    """Return what the maps of a volume are to be made with: window, blocks, chunks; the plan of maps that were begun so.

    Raises
    ------
    InferenceError
        If the model's channels or classes are not those of the volume or the campaign, its outputs cannot be maps, or it
        tells no objects apart although their map is asked for.
    """
    volume, predictor, n_classes = job.volume, _predictor_of(job), len(job.classes)
    for what, has, needs in (
        ("channels", predictor.in_channels, volume.channels),
        ("classes", predictor.n_classes, n_classes),
    ):
        if has != needs:
            raise InferenceError(
                f"the model has {has} {what}, {needs} are needed",
                where=f"volume {job.volume_id}",
                todo="Train a model for this campaign's volumes and classes",
            )
    outputs = _other_outputs(predictor, f"volume {job.volume_id}")
    if job.object_disagreement and object_output(outputs) is None:
        raise InferenceError(
            f"a model of '{job.model.trainer}' tells no objects apart, so its members cannot disagree about them",
            where=f"volume {job.volume_id}",
            todo="Mend the predictor or the settings of this trainer, which say that it does",
        )
    window = predictor.window_zyx(volume.spacing_um_zyx)
    grid = WindowGrid(volume.shape_zyx, window, job.inference.overlap)
    chunk = choose_chunks(volume.shape_zyx)[0]
    channels = predictor.n_classes + 1 + sum(output.channels for output in outputs)
    limit = job.inference.block_voxels * _USUAL_CHANNELS // max(channels, _USUAL_CHANNELS)
    batch = batch_size(window, torch.device(resolve_device(job.device)))
    shared = job.maps.shared_windows() is not None
    plan = InferencePlan(
        model=job.model,
        volume_id=job.volume_id,
        volume_digest=volume_digest(volume),
        shape_zyx=volume.shape_zyx,
        spacing_um_zyx=volume.spacing_um_zyx,
        n_classes=n_classes,
        seed=job.seed,
        inference=job.inference,
        window_zyx=window,
        chunk_zyx=chunk,
        block_zyx=choose_blocks(grid, chunk, limit, job.workers, batch, shared=shared),
        networks=predictor.networks,
        outputs=outputs,
        object_disagreement=job.object_disagreement,
    )
    earlier = job.maps.plan()
    if earlier is not None and earlier.serves(plan):
        return earlier
    forward = forward_of(predictor, len(grid), job.workers)
    return plan.model_copy(update={"inference": job.inference.model_copy(update={"forward": forward})})


def volume_digest(volume: VolumeRecord) -> str:
    """Return the digest of a volume's voxels and of its normalisation: the maps of another one are not its own."""
    return digest_json([volume.digest, volume.normalisation.to_json()])


def _other_outputs(predictor: Predictor, where: str) -> tuple[Output, ...]:
    """Return what a predictor says beside the class probabilities, which must come first; names of maps are taken."""
    first, *others = predictor.outputs
    names = [*RESERVED, *(output.name for output in others)]
    single = {output.name: place for place, output in enumerate(others) if output.channels == 1}
    has_peaks = all(single.get(o.at_peaks_of, place) < place for place, o in enumerate(others) if o.at_peaks_of)
    if first != class_probabilities(predictor.n_classes) or len(set(names)) < len(names) or not has_peaks:
        raise InferenceError(
            f"the model's outputs ({', '.join(o.name for o in predictor.outputs)}) cannot be maps",
            where=where,
            todo="Let its predictor name the class probabilities first, and no output like an uncertainty or another",
        )
    return tuple(others)


class _Context(NamedTuple):
    """What a process needs for the blocks of a job."""

    maps: VolumeMaps
    plan: InferencePlan
    volume: VolumeRecord
    image: zarr.Array[Any]
    statistics: WindowStatistics


@lru_cache(maxsize=2)
def _context(job: InferenceJob, plan_digest: str) -> _Context:
    maps = job.maps
    plan = maps.plan()
    if plan is None or plan.digest != plan_digest:
        raise InferenceError(
            "another run replaced the maps",
            where=f"volume {job.volume_id}",
            todo="Let one run at a time infer a volume",
        )
    image = open_image(VolumeFolder(Storage(job.volumes_url)), job.volume_id)
    named = job.inference.forward
    inference = plan.inference if named == "auto" else plan.inference.model_copy(update={"forward": named})
    predictor = _predictor_of(replace(job, inference=inference))
    return _Context(maps, plan, job.volume, image, WindowStatistics(plan, predictor))


def run_block(job: InferenceJob, plan_digest: str, run: str, index: int) -> str:
    """Compute one block, write its shards, then its completion marker.

    Parameters
    ----------
    job : InferenceJob
        Model, volume, settings.
    plan_digest : str
        The plan that the maps on disk must be made with.
    run : str
        Where the blocks of this run leave windows for one another; empty where they do not.
    index : int
        The block.

    Returns
    -------
    str
        sha256 of the block's voxels in all maps.
    """
    with _LOADING:
        stored, plan, volume, image, statistics = _context(job, plan_digest)
    device = torch.device(resolve_device(job.device))
    work = BoxWork(plan, plan.blocks[index], index, _shared_windows(stored, plan, run), device)
    pixels = work.read(image, volume.normalisation)
    with _COMPUTING:
        maps = work.compute(pixels, statistics)
    digest, files = hashlib.sha256(), dict[str, FileSum]()
    limit = float(np.finfo(plan.inference.map_dtype).max)
    peaks_of = {output.name: output.at_peaks_of for output in plan.outputs if output.at_peaks_of}
    peaks = dict[str, npt.NDArray[np.bool_]]()
    for quantity in plan.quantities:
        lowest, highest = plan.lowest(quantity, limit), 1 if quantity == PROBABILITY else limit
        values = maps.pop(quantity).clamp(lowest, highest).to(_TORCH_TYPES[plan.inference.map_dtype]).cpu().numpy()
        if quantity in peaks_of.values():
            peaks[quantity] = find_peaks(values[0])
        if quantity in peaks_of:
            values *= peaks[peaks_of[quantity]]
        digest.update(values.data)
        files |= stored.write(quantity, plan.blocks[index], values)
    stored.mark(plan, index, digest.hexdigest(), files)
    if work.shared is not None:
        work.shared.forget(index)
    return digest.hexdigest()


def _shared_windows(stored: VolumeMaps, plan: InferencePlan, run: str) -> SharedWindows | None:
    root = stored.shared_windows()
    if root is None or not run:
        return None
    return SharedWindows(root / run, plan.shape_zyx, plan.block_zyx, stored.is_done, plan.map_bytes)


def predict_boxes(job: InferenceJob, boxes: Iterable[Box]) -> Iterator[dict[str, Float32]]:
    """Yield the maps of some boxes of a volume, computed here and stored nowhere; see `rescueseg.inference.boxes.BoxWork`.

    Raises
    ------
    InferenceError
        As `infer`.
    """
    if job.inference.forward == "auto":  # a few boxes are not worth a choice
        job = replace(job, inference=job.inference.model_copy(update={"forward": EAGER}))
    plan, predictor, volume = make_plan(job), _predictor_of(job), job.volume
    plan = plan.model_copy(
        update={"object_disagreement": job.object_disagreement}
    )  # that of earlier maps may hold more
    image = open_image(VolumeFolder(Storage(job.volumes_url)), job.volume_id)
    statistics = WindowStatistics(plan, predictor)
    for box in boxes:
        work = BoxWork(plan, box, device=torch.device(resolve_device(job.device)))
        maps = work.compute(work.read(image, volume.normalisation), statistics)
        yield {quantity: values.cpu().numpy() for quantity, values in maps.items()}
