"""Public example volumes, pinned to a commit and a sha256 per file, downloaded once by pooch.

A volume that already lies in a data folder (``<name>/raw.tif``, ``labels.tif``, ``meta.json``) is taken from there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pooch
import requests
import tifffile
from skimage.io import imread
from skimage.segmentation import find_boundaries, relabel_sequential

from rescueseg.errors import ConfigError, ExampleUnavailable
from rescueseg.geometry import Box, Spacing
from rescueseg.image_files.registry import open_source
from rescueseg.records import LabelType
from rescueseg.storage import replace_atomically

_REGISTRY = Path(__file__).with_name("examples_registry.txt")
_TIMEOUT = (4, 60)
_CONNECTIONS = 8


@dataclass(frozen=True)
class Example:
    """A volume with ground truth, ready for `import_volume`.

    Parameters
    ----------
    name : str
        Its name.
    raw_path, truth_path : str
        Image and truth, in a form that `open_source` reads.
    spacing : tuple of float
        Voxel size z y x in micrometre.
    truth_type : {"semantic", "instance"}
        Kind of truth.
    classes : tuple of str
        Names of classes 1…K.
    licence : str
        Terms of the source.
    """

    name: str
    raw_path: str
    truth_path: str
    spacing: Spacing
    truth_type: LabelType
    classes: tuple[str, ...]
    licence: str = ""


Files = Mapping[str, Path]
Convert = Callable[[Files, Path], tuple[str, str]]


@dataclass(frozen=True)
class _Recipe:
    """What is known about a public volume, and how its original files become image and truth."""

    convert: Convert
    spacing: Spacing
    truth_type: LabelType
    structure: str
    licence: str
    boundaries: bool = False
    """The truth numbers every voxel; what is segmented is the boundary between objects."""


def example_names() -> list[str]:
    """Return the names of the volumes that can be downloaded."""
    return sorted(_RECIPES)


def load_example(name: str, data_dir: str | None = None) -> Example:
    """Return a public volume from a data folder, the cache, or the network.

    Parameters
    ----------
    name : str
        One of `example_names`, or any folder in `data_dir` that holds ``raw.tif``, ``labels.tif`` and ``meta.json``.
    data_dir : str, optional
        Folder of such folders, looked at first.

    Returns
    -------
    Example
        Paths to image and truth.

    Raises
    ------
    ExampleUnavailable
        If it is neither there nor in the cache, and cannot be downloaded within a few seconds, or its sha256 differs.
    ConfigError
        If `data_dir` is no folder.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError("there is no such folder", where=data_dir, todo="Check the path of the data folder")
    if data_dir is not None and (Path(data_dir) / name / "raw.tif").is_file():
        return _from_folder(name, Path(data_dir) / name)
    if name not in _RECIPES:
        choices = ", ".join(example_names())
        where = f" in {data_dir}" if data_dir else ""
        raise ExampleUnavailable(f"there is no example '{name}'{where}", todo=f"Known: {choices}")
    recipe = _RECIPES[name]
    raw, truth = recipe.convert(_download(name), _cache() / name)
    if recipe.boundaries:
        truth = _boundary_file(name, truth)
    truth_type: LabelType = "semantic" if recipe.boundaries else recipe.truth_type
    return Example(name, raw, truth, recipe.spacing, truth_type, (recipe.structure,), recipe.licence)


def _from_folder(name: str, folder: Path) -> Example:
    """Read a volume that somebody put in a data folder."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        z, y, x = (float(v) for v in meta["voxel_size_um_zyx"])
        kind = meta["label_type"]
    except (OSError, ValueError, KeyError) as error:
        raise ExampleUnavailable(
            f"its meta.json is not usable ({error})",
            where=str(folder),
            todo="Give voxel_size_um_zyx and label_type (semantic or instance)",
        ) from error
    truth = str(folder / "labels.tif")
    recipe = _RECIPES.get(name)
    structure = recipe.structure if recipe else str(meta.get("class", "object"))
    if recipe and recipe.boundaries:
        truth, kind = _boundary_file(name, truth), "semantic"
    truth_type: LabelType = "instance" if kind == "instance" else "semantic"
    licence = str(meta.get("license", ""))
    return Example(name, str(folder / "raw.tif"), truth, (z, y, x), truth_type, (structure,), licence)


def _cache() -> Path:
    """Return the folder of downloads: ``RESCUESEG_CACHE``, or the user's cache."""
    return Path(os.environ.get("RESCUESEG_CACHE") or pooch.os_cache("rescueseg"))


def _download(name: str) -> dict[str, Path]:
    """Return the original files of a volume, by file name, each checked against its sha256."""
    pool = pooch.create(path=_cache(), base_url="", registry=None, retry_if_failed=0)
    pool.load_registry(_REGISTRY)
    keys = sorted(key for key in pool.registry if key.startswith(f"{name}/"))
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT)

    def fetch(key: str) -> Path:
        return Path(pool.fetch(key, downloader=downloader))

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        first = fetch(keys[0])
        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            rest = list(threads.map(fetch, keys[1:]))
    except (requests.RequestException, OSError, ValueError) as error:
        reason = "its sha256 differs" if isinstance(error, ValueError) else type(error).__name__
        raise ExampleUnavailable(
            f"the example '{name}' is not cached and cannot be downloaded ({reason})",
            todo="Check the network, or give a data folder that holds it",
        ) from error
    finally:
        logger.setLevel(level)
    return {path.name: path for path in [first, *rest]}


def _write_tiff(path: Path, make: Callable[[], npt.NDArray[Any]]) -> str:
    """Write a converted volume once, atomically."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as part:
            tifffile.imwrite(part, make(), photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"})
    return str(path)


def _boundary_file(name: str, truth: str) -> str:
    """Turn numbered objects into a mask of the voxels on both sides of a boundary, and unlabelled ones."""
    with Path(truth.split(":")[0]).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    def make() -> npt.NDArray[Any]:
        source = open_source(truth)
        numbers = source.read(Box((0, 0, 0), source.shape_zyx))[0]
        source.close()
        thick: npt.NDArray[Any] = find_boundaries(numbers, mode="thick")
        mask: npt.NDArray[Any] = (thick | (numbers == 0)).astype(np.uint8)
        return mask

    return _write_tiff(_cache() / name / f"boundary-{digest[:16]}.tif", make)


def _stack(paths: list[Path], *, mask: bool = False) -> npt.NDArray[Any]:
    """Stack PNG slices, grey or RGB with three equal channels."""
    planes = [np.asarray(imread(path)) for path in paths]
    stack = np.stack([plane if plane.ndim == 2 else plane[..., 0] for plane in planes])
    return (stack > 0).astype(np.uint8) if mask else stack


def _datasets(raw: str, truth: str) -> Convert:
    """Take files, or datasets in HDF5 files, as they are."""

    def at(files: Files, spec: str) -> str:
        name, _, dataset = spec.partition(":")
        return f"{files[name]}:{dataset}" if dataset else str(files[name])

    return lambda files, _folder: (at(files, raw), at(files, truth))


def _mask_255(raw: str, truth: str) -> Convert:
    """Turn a mask of 0 and 255 into one of 0 and 1."""

    def convert(files: Files, folder: Path) -> tuple[str, str]:
        return str(files[raw]), _write_tiff(
            folder / "labels.tif", lambda: (tifffile.imread(files[truth]) > 0).astype(np.uint8)
        )

    return convert


def _cdeep3m(files: Files, folder: Path) -> tuple[str, str]:
    images = sorted(path for name, path in files.items() if name.startswith("images."))
    labels = sorted(path for name, path in files.items() if name.startswith("mitos_3D."))
    return (
        _write_tiff(folder / "raw.tif", lambda: _stack(images)),
        _write_tiff(folder / "labels.tif", lambda: _stack(labels, mask=True)),
    )


def _flyem(files: Files, folder: Path) -> tuple[str, str]:
    """Stack the slices; join the supervoxels into bodies as the file's `transforms` say."""
    slices = sorted(path for name, path in files.items() if name.startswith("iso."))

    def bodies() -> npt.NDArray[Any]:
        with gzip.open(files["groundtruth.h5.gz"]) as file, h5py.File(file, "r") as data:
            supervoxels, transforms = data["stack"][:], data["transforms"][:]
        body = np.arange(max(int(supervoxels.max()), int(transforms[:, 0].max())) + 1)
        body[transforms[:, 0]] = transforms[:, 1]
        joined = relabel_sequential(body[supervoxels])[0]
        numbers: npt.NDArray[Any] = np.asarray(joined).astype(np.uint16)
        return numbers

    return _write_tiff(folder / "raw.tif", lambda: _stack(slices)), _write_tiff(folder / "labels.tif", bodies)


_RECIPES: dict[str, _Recipe] = {
    "cdeep3m_mito_train": _Recipe(
        _cdeep3m, (0.03, 0.01, 0.01), "semantic", "mitochondrion", "UC Regents: education, research and non-profit use"
    ),
    "flyem_fib25_train2": _Recipe(
        _flyem, (0.01, 0.01, 0.01), "instance", "membrane", "CC-BY", boundaries=True
    ),
    "gala_em_train": _Recipe(
        _datasets("train-image.h5:stack", "train-gt.lzf.h5:stack"), (0.01, 0.01, 0.01), "instance", "membrane",
        "HHMI Janelia, BSD-style", boundaries=True,
    ),
    "gonuclear_1135": _Recipe(
        _datasets("1135_mini.h5:raw", "1135_mini.h5:label"), (0.28372, 0.12679, 0.12679), "instance", "nucleus", "MIT"
    ),
    "plantseg_ovule_cells": _Recipe(
        _datasets("sample_ovule.h5:raw", "sample_ovule.h5:label"), (0.235, 0.15, 0.15), "instance", "membrane", "MIT",
        boundaries=True,
    ),
    "stardist_img3d": _Recipe(
        _datasets("img3d.tif", "mask3d.tif"), (1.0, 0.5, 0.5), "instance", "nucleus", "BSD-3-Clause"
    ),
    "vesselnn_burgess2014_tgMouse": _Recipe(
        _mask_255("burgess2014_tgMouse_BM4D_denoised.tif", "burgess2014_tgMouse_labels_v1.tif"), (5.0, 0.994, 0.994),
        "semantic", "vessel", "none stated; cite arXiv:1606.02382",
    ),
    "vesselnn_poon2015_BBB_noLeakage": _Recipe(
        _mask_255("poon2015_BBB_noLeakage_BM4D_denoised.tif", "poon2015_BBB_noLeakage_manualLabel_v2.tif"),
        (5.0, 0.994, 0.994), "semantic", "vessel", "none stated; cite arXiv:1606.02382",
    ),
}  # fmt: skip
