"""A program that speaks the command line of ilastik's headless mode: foreground is what is above 1."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import h5py
import numpy as np
from scipy.special import expit


def install(folder: Path) -> str:
    """Write the program as an executable file and return its path."""
    program = folder / "run_ilastik.sh"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def project(path: Path, labels: list[str]) -> str:
    """Write what is read of a project: the names of its labels."""
    with h5py.File(path, "w") as file:
        file["PixelClassification/LabelNames"] = np.array([label.encode() for label in labels])
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--headless", action="store_true", required=True)
    parser.add_argument("--readonly")
    for name in ("project", "export_source", "output_format", "output_axis_order", "output_internal_path"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("output_filename_format", "input_axes", "raw_data"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    if os.environ.get("STAND_IN_FAILS"):
        sys.exit("RuntimeError: Could not find training data")
    assert (given.export_source, given.output_format) == ("Probabilities", "hdf5")
    assert given.input_axes == given.output_axis_order == "zyxc"
    file, dataset = given.raw_data.rsplit("/", 1)
    with h5py.File(file) as source:
        image = np.asarray(source[dataset], np.float32)
    foreground = expit(4 * (image[..., 0] - 1))
    with h5py.File(given.output_filename_format, "w") as target:
        target[given.output_internal_path] = np.stack([1 - foreground, foreground], axis=-1).astype(np.float32)


if __name__ == "__main__":
    main()
