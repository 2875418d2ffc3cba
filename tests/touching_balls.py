"""A volume of balls that touch, and all that a delivery makes objects of: mask and maps, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from scipy import ndimage

from rescueseg.campaign import GenerationFolder
from rescueseg.config import InferenceConfig
from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.records import CleanUp, DeliveryRule
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import ZYX, Spacing
from rescueseg.inference.maps import InferencePlan, VolumeMaps
from rescueseg.models.predictor import AXES, Output
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.records import MapReference, ModelReference
from rescueseg.storage import Storage
from rescueseg.volumes.shards import FileSum
from rescueseg.voxels.peaks import find_peaks

SHAPE, SPACING = (24, 60, 66), (0.5, 0.2, 0.2)
RADIUS = 2.3
CENTRES = ((5.0, 3.0, 3.0), (5.0, 3.0, 7.0), (5.0, 6.9, 5.0), (2.6, 9.2, 9.4), (6.6, 9.2, 9.4))
"""In micrometre; each ball touches another one, the last two along z."""


def truth() -> npt.NDArray[np.uint32]:
    """Return the number of the ball that each voxel is in, of two the one whose centre is nearer; 0 outside."""
    places = np.indices(SHAPE).reshape(3, -1).T * SPACING
    distances = np.linalg.norm(places[:, None] - np.array(CENTRES), axis=2)
    numbers = np.where(distances.min(axis=1) <= RADIUS, distances.argmin(axis=1) + 1, 0)
    return numbers.reshape(SHAPE).astype(np.uint32)


def maps_of(balls: npt.NDArray[np.uint32], boundary: bool = False, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Return maps as a good model makes them: class 1 is inside of the balls, class 2 (on request) where two touch."""
    rng = np.random.default_rng(seed)
    numbers = np.unique(balls[balls > 0])
    distance = np.max([ndimage.distance_transform_edt(balls == n, sampling=SPACING) for n in numbers], axis=0)
    inside = balls > 0
    to_others = [ndimage.distance_transform_edt(~inside | (balls == n), sampling=SPACING) for n in numbers]
    border = inside & (np.choose(np.maximum(balls, 1) - 1, to_others) <= 0.5 + 1e-6)
    core = inside & (distance > 0.55)
    classes = [~inside, inside & ~border, border] if boundary else [~core, core]
    smooth = [ndimage.gaussian_filter(c.astype(np.float32), (0.4, 1.0, 1.0)) for c in classes]
    noisy = np.maximum(np.stack(smooth) + 0.02 * rng.random((len(classes), *SHAPE)), 1e-3)
    probability = (noisy / noisy.sum(axis=0)).astype(np.float32)
    return {
        "probability": probability.astype(np.float16).astype(np.float32),
        "border_distance": distance[None].astype(np.float16).astype(np.float32),
        "flow": flow_to_middles(balls, 0.3, rng).astype(np.float16).astype(np.float32),
    }


def star_maps(balls: npt.NDArray[np.uint32], rays: int = 66) -> dict[str, npt.NDArray[np.float32]]:
    """Return what a perfect StarDist model says: by StarDist's own functions, kept at the peaks as the engine keeps it."""
    from stardist import edt_prob, star_dist3D
    from stardist.rays3d import Rays_Explicit, Rays_Octo

    octahedron = Rays_Octo({18: 2, 66: 3}[rays])
    in_voxels = octahedron.vertices / np.array(SPACING, np.float32)
    per_um = np.linalg.norm(in_voxels, axis=1)
    steps = Rays_Explicit(in_voxels / per_um[:, None], octahedron.faces)
    lengths = np.moveaxis(star_dist3D(balls.astype(np.uint16), steps, mode="cpp") / per_um, -1, 0)
    probability = edt_prob(balls.astype(np.int32), anisotropy=SPACING).astype(np.float16).astype(np.float32)
    kept = lengths.astype(np.float16).astype(np.float32) * find_peaks(probability)
    return {"object_probability": probability[None], "star_distance": kept}


def cones(
    shape: ZYX, spacing: Spacing, diameter_um: float, step_um: float = 2.1
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """Return an image of balls in rows that touch, brightest in their middles, and their numbers."""
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)]
    grids = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    rows = [np.arange(1.3, a[-1] - 0.5, step_um) for a in axes]
    middles = np.stack(np.meshgrid(*rows, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = np.linalg.norm(grids[..., None, :] - middles, axis=-1)
    nearest = distances.min(axis=-1)
    numbers = np.where(nearest < diameter_um / 2, distances.argmin(axis=-1) + 1, 0)
    noise = np.random.default_rng(0).normal(0, 20, shape)
    image = 1000 + 2000 * (1.25 - 1.5 * nearest / diameter_um) * (numbers > 0) + noise
    return np.clip(image, 0, 65535).astype(np.uint16), numbers


def flow_to_middles(balls: npt.NDArray[np.uint32], noise: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the flow (3, z, y, x) from each voxel of a ball to its middle, of unit length in micrometre, with noise."""
    places = np.indices(balls.shape) * np.array(SPACING)[:, None, None, None]
    flow = noise * rng.standard_normal(places.shape)
    for number in np.unique(balls[balls > 0]):
        inside = balls == number
        ways = places[:, inside].mean(axis=1, keepdims=True) - places[:, inside]
        flow[:, inside] += ways / np.maximum(np.linalg.norm(ways, axis=0), 1e-6)
    return flow.astype(np.float32)


def rule_of(objects: ObjectRule, temperature: float = 1.0, object_class: int = 1) -> DeliveryRule:
    """Return a rule whose masks are what they are."""
    return DeliveryRule(
        model_digest="m",
        truth_digest="t",
        temperature=temperature,
        cleanup=(CleanUp(),) * object_class,
        objects=objects,
        object_class=object_class,
    )


def make_target(
    folder: Path,
    mask: npt.NDArray[np.uint8],
    maps: Mapping[str, npt.NDArray[np.float32]],
    rule: DeliveryRule,
    block: ZYX,
) -> TargetVolume:
    """Write mask, empty objects and maps of a volume."""
    source = SourceVolume("v", str(folder), str(folder), 0)
    target = TargetVolume(source, DeliveryFolder(str(folder / "out")), rule, _zyx(mask), SPACING, block)
    for name, dtype in (("mask", np.uint8), ("objects", np.uint32)):
        zarr.create_array(
            target.label_url(name), name="0", shape=mask.shape, dtype=dtype, chunks=block, shards=block, fill_value=0
        )
    zarr.open_array(target.label_url("mask"), path="0", mode="r+")[...] = mask
    _write_maps(folder, maps, SPACING)
    return target


def _zyx(mask: npt.NDArray[np.uint8]) -> ZYX:
    z, y, x = mask.shape
    return z, y, x


def _write_maps(folder: Path, maps: Mapping[str, npt.NDArray[np.float32]], spacing: Spacing) -> None:
    _, z, y, x = maps["probability"].shape
    model = ModelReference(generation=0, trainer="t", path="m", digest="d")
    plan = InferencePlan(
        model=model,
        volume_id="v",
        volume_digest="d",
        shape_zyx=(z, y, x),
        spacing_um_zyx=spacing,
        n_classes=len(maps["probability"]) - 1,
        seed=0,
        inference=InferenceConfig(),
        window_zyx=(8, 16, 16),
        block_zyx=(16, 32, 32),
        chunk_zyx=(8, 16, 16),
        outputs=tuple(
            Output(name="flow", channels=3, kind="flow", directions=AXES)
            if name == "flow"
            else Output(name=name, channels=len(array), kind="distance")
            for name, array in maps.items()
            if name != "probability"
        ),
    )
    stored = VolumeMaps(GenerationFolder.of(Storage(str(folder)), 0), "v")
    stored.prepare(plan, ["a", "b"][: plan.n_classes])
    for index, box in enumerate(plan.blocks):
        files: dict[str, FileSum] = {}
        for name, array in maps.items():
            files |= stored.write(name, box, array[(..., *box.slices)].astype(np.float16))
        stored.mark(plan, index, "d", files)
    reference = MapReference(
        generation=0, volume_id="v", model_digest="d", quantities=plan.quantities, blocks=len(plan.blocks), digest="d"
    )
    stored.finish(reference)


def read_objects(target: TargetVolume) -> npt.NDArray[np.uint32]:
    """Return what was written."""
    return np.asarray(zarr.open_array(target.label_url("objects"), path="0", mode="r")[...], np.uint32)
