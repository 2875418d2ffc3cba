"""What the triage says of volumes with known truth, from how far, and how well the answer holds.

Run ``python tests/benchmarks/triage_table.py FOLDER [NAME…] --seeds 5``. ``FOLDER/NAME/`` holds ``raw.tif``, ``labels.tif``, and
``meta.json`` with ``voxel_size_um_zyx`` and ``label_type``. ``NAME:membranes`` takes the borders between the objects (or
``membrane_boundary.tif``) as the structure. The rough mask is a few seeded patches of truth, as `rescueseg triage --mask truth`
draws them. With ``--disturb`` every volume is triaged again with Poisson-Gaussian noise, blur, and another gain and offset.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage
from skimage.segmentation import find_boundaries

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.queue.store import open_queue
from rescueseg.stages.triage import triage_campaign
from rescueseg.triage.records import Triage
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.volume_files import VolumeImport

DEFAULT = (
    *(
        "gonuclear_1135",
        "flyem_fib25_train2:membranes",
        "vesselnn_poon2015_BBB_noLeakage",
        "vesselnn_burgess2014_tgMouse",
    ),
    *(
        "bbbc050_mosaic_train",
        "stardist_img3d",
        "plantseg_ovule_cells:membranes",
        "plantseg_ovule_cells",
        "cdeep3m_mito_train",
    ),
)


def poisson_gaussian(image: np.ndarray, share: float) -> np.ndarray:
    """Add noise of `share` of the intensity range, half of its variance growing with the intensity."""
    rng = np.random.default_rng(0)
    low, high = np.percentile(image, (1, 99))
    light = np.clip((image - low) / (high - low), 0, None)
    shot = rng.normal(0, 1, image.shape) * np.sqrt(light / 2)
    return image + share * (high - low) * (shot + rng.normal(0, np.sqrt(0.5), image.shape))


DISTURBED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise 5 %": lambda image: poisson_gaussian(image, 0.05),
    "noise 20 %": lambda image: poisson_gaussian(image, 0.2),
    "noise 50 %": lambda image: poisson_gaussian(image, 0.5),
    "blur 1 voxel": lambda image: ndimage.gaussian_filter(image, 1.0),
    "×3 + 500": lambda image: image * 3 + 500,
}


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, str, tuple[float, float, float]]:
    """Return image, truth, its kind and the spacing."""
    name, _, what = name.partition(":")
    meta = json.loads((folder / name / "meta.json").read_text())
    image = tifffile.imread(folder / name / "raw.tif").astype(np.float32)
    truth, kind = tifffile.imread(folder / name / "labels.tif"), str(meta["label_type"])
    if what == "membranes":
        given = folder / name / "membrane_boundary.tif"
        truth = tifffile.imread(given) > 0 if given.exists() else find_boundaries(truth, mode="thick")
        kind = "semantic"
    truth = truth.astype(np.uint16) if kind == "instance" else (truth > 0).astype(np.uint8)
    z, y, x = meta["voxel_size_um_zyx"]
    return image, truth, kind, (z, y, x)


def triaged(image: np.ndarray, truth: np.ndarray, kind: Any, spacing: tuple[float, float, float], seed: int) -> Triage:
    """Triage a volume in a campaign of its own."""
    folder = Path(tempfile.mkdtemp(prefix="triage_table_"))
    try:
        tifffile.imwrite(folder / "raw.tif", image)
        tifffile.imwrite(folder / "truth.tif", truth)
        files = str(folder / "raw.tif"), str(folder / "truth.tif")
        volume = VolumeImport(files[0], spacing=spacing, truth=files[1], truth_type=kind)
        config = settings_of("t", ["structure"], [f"seed={seed}"])
        campaign: Campaign = start_campaign(str(folder / "campaign"), config, [volume], say=lambda line: None)
        store = open_queue(campaign)
        return triage_campaign(campaign, store, mask="truth")
    finally:
        shutil.rmtree(folder)


def line(title: str, result: Triage) -> str:
    """Return one row: route, distance of every answer, evidence."""
    value = {e.name: e.value for e in result.evidence}
    distances = "  ".join(f"{'  –  ' if s.measured is None else f'{s.measured:5.2f}'}" for s in result.steps)
    shown = "  ".join(
        f"{name} {'–' if value.get(name) is None else f'{value[name]:.3g}'}"
        for name in (
            "snr",
            "slenderness",
            "length",
            "connected",
            "texture",
            "star_convexity",
            "sphericity",
            "whole_objects",
        )
    )
    return f"{title:44s} {result.route.title:24s} {distances}   {shown}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(DEFAULT))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--disturb", action="store_true", help="with noise, blur and another gain, seed 0")
    arguments = parser.parse_args()
    print(f"{'':44s} {'route':24s}   SNR  topol.  text.   star   blob   (multiples of the threshold; from 1 on: yes)")
    for name in arguments.names:
        image, *rest = load(arguments.folder, name)
        routes = []
        for seed in range(arguments.seeds):
            result = triaged(image, *rest, seed)
            routes.append(result.letter)
            print(line(f"{name} seed {seed}", result), flush=True)
        print(f"{name}: {' '.join(routes)}", flush=True)
        for title, change in DISTURBED.items() if arguments.disturb else ():
            print(line(f"{name} {title}", triaged(change(image), *rest, 0)), flush=True)


if __name__ == "__main__":
    main()
