"""An environment in which a package calls itself cellpose 4: what is above a half is a cell, and its flow is the gradient.

It speaks as cellpose 4 does: flows are 5 times a unit vector and, like the logit, sums over the planes of three orientations.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE = """
import os, sys, time
import numpy as np

class CellposeModel:
    def __init__(self, gpu, pretrained_model, use_bfloat16):
        assert os.path.isfile(pretrained_model)

    def eval(self, x, channel_axis, z_axis=None, normalize=True, diameter=30, compute_masks=True, do_3D=False):
        assert not normalize and diameter is None and not compute_masks
        assert x.shape[-1] == 3 and channel_axis == x.ndim - 1 and do_3D == (x.ndim == 4)
        if "STAND_IN_FAILS" in os.environ:
            sys.exit("RuntimeError: no kernel image is available")
        if "STAND_IN_WAITS" in os.environ:
            time.sleep(60)
        image = x[..., 0]
        orientations = 3 if do_3D else 1
        scale = 10 if do_3D else 5
        parts = [np.gradient(image, axis=a) if image.shape[a] > 1 else 0 * image for a in range(image.ndim)]
        flow = scale * 16 * np.stack(parts)
        return None, [None, flow.squeeze(), (orientations * 20 * (image - 0.5)).squeeze()], None
"""


def install(folder: Path, version: str = "4.0.6") -> str:
    """Make the environment and return its Python; all else is imported from the environment of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "cellpose").mkdir()
    (site / "cellpose" / "__init__.py").write_text("")
    (site / "cellpose" / "models.py").write_text(MODULE)
    information = site / f"cellpose-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cellpose\nVersion: {version}\n")
    return str(folder / "bin" / "python")


def save_weights(path: Path) -> str:
    """Save what is known as weights of Cellpose-SAM by its names."""
    import torch

    torch.save({"W2": torch.zeros(2), "encoder.pos_embed": torch.zeros(2)}, path)
    return str(path)
