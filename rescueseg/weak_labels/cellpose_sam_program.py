"""Runs Cellpose-SAM on one image, in an environment that has cellpose 4 and need not have rescueseg: a program of its own.

::

    python cellpose_sam_program.py FOLDER

The folder holds ``request.json`` with the weights, and whether planes along the first axis alone are read; and ``image.npy``,
float32 czyx, scaled, objects 30 voxels wide. It gets ``flow.npy`` (3, z, y, x) and ``logit.npy`` (zyx), float32. Only tensors
are read of the weights. Progress goes to standard output, a line per step.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Float32 = npt.NDArray[np.float32]

FLOW_SCALE = 5
"""The network says so many times a flow."""


def main(folder: Path) -> None:
    """Read the request of a folder, and write what the network says."""
    request = json.loads((folder / "request.json").read_text())
    image = np.load(folder / "image.npy", allow_pickle=False)
    print("looking at the weights", flush=True)
    check_weights(request["weights"])
    from cellpose.models import CellposeModel

    print("loading the network", flush=True)
    gpu = torch.cuda.is_available()
    model = CellposeModel(gpu=gpu, pretrained_model=request["weights"], use_bfloat16=gpu)
    print("computing", flush=True)
    three = np.zeros((3, *image.shape[1:]), np.float32)
    three[: len(image)] = image
    flow, logit = predict(model, np.moveaxis(three, 0, -1), bool(request["planes_only"]))
    np.save(folder / "flow.npy", flow.astype(np.float32), allow_pickle=False)
    np.save(folder / "logit.npy", logit.astype(np.float32), allow_pickle=False)


def check_weights(path: str) -> None:
    """Leave where cellpose is too old, or the file holds anything but the tensors of Cellpose-SAM."""
    if int(version("cellpose").split(".")[0]) < 4:
        sys.exit(f"cellpose {version('cellpose')} is installed there, and Cellpose-SAM needs version 4")
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    names = {name.removeprefix("module.") for name in tensors} if isinstance(tensors, dict) else set()
    if "W2" not in names or "encoder.cls_token" in names:
        sys.exit("the file holds no weights of Cellpose-SAM")


def predict(model: Any, image: Float32, planes_only: bool) -> tuple[Float32, Float32]:
    """Return the flow (3, z, y, x), of unit length, and the logit (zyx) of an image (z, y, x, 3): means over the planes."""
    settings = {"normalize": False, "diameter": None, "compute_masks": False}
    shape = image.shape[:3]
    if planes_only:
        said = [model.eval(plane, channel_axis=2, **settings)[1] for plane in image]
        flow = np.stack([np.asarray(of[1], np.float32).reshape(2, *shape[1:]) for of in said], axis=1)
        logit = np.stack([np.asarray(of[2], np.float32).reshape(shape[1:]) for of in said])
        return np.concatenate([np.zeros((1, *shape), np.float32), flow / np.float32(FLOW_SCALE)]), logit
    of = model.eval(image, channel_axis=3, z_axis=0, do_3D=True, **settings)[1]
    flow, logit = np.asarray(of[1], np.float32).reshape(3, *shape), np.asarray(of[2], np.float32).reshape(shape)
    # each component is the sum over two orientations, the logit over three
    return flow / np.float32(2 * FLOW_SCALE), logit / np.float32(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
