"""Delivered TIFFs in ImageJ itself: Debian's, on a virtual screen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.delivery.label_colours import class_colours
from rescueseg.delivery.label_files import LabelFile, write_tiff

pytestmark = [pytest.mark.needs_imagej, pytest.mark.needs_xvfb]

JAR = Path("/usr/share/java/ij.jar")
SPACING = (0.45, 0.12, 0.13)
SHAPE = (7, 150, 180)
MACRO = """
open("{tiff}");
getDimensions(width, height, channels, slices, frames);
getVoxelSize(x, y, z, unit);
text = "" + width + " " + height + " " + channels + " " + slices + " " + frames + " " + bitDepth() + "\\n";
text = text + d2s(x, 9) + " " + d2s(y, 9) + " " + d2s(z, 9) + " " + unit + "\\n";
for (k = 1; k <= slices; k++) {{
    setSlice(k);
    text = text + d2s(getValue({x}, {y}), 0) + " " + d2s(getValue(width - 1, 0), 0) + "\\n";
}}
File.saveString(text, "{told}");
setSlice(4);
wait(500);
run("Capture Screen");
saveAs("Tiff", "{screen}");
run("Close All");
run("Quit");
"""


def voxels(highest: int) -> np.ndarray:
    """Return balls in a row, of which the last has the highest label; no plane is like another."""
    labels = np.zeros(SHAPE, np.uint32)
    z, y, x = np.indices(SHAPE)
    for number, centre in enumerate((30, 90, 150), start=1):
        inside = ((z - 3) * 3) ** 2 + (y - 75) ** 2 + (x - centre) ** 2 < 28**2
        labels[inside] = highest if number == 3 else number
    labels[:, 10, 20] = np.linspace(0, highest, SHAPE[0]).astype(np.uint32)
    return labels


@pytest.mark.parametrize(("highest", "bits"), [(3, 8), (65_535, 16), (16_777_216, 32)])
def test_imagej_reads_what_was_delivered(tmp_path: Path, virtual_screen: str, highest: int, bits: int) -> None:
    java = shutil.which("java")
    if java is None or not JAR.exists():
        pytest.skip("no ImageJ on this machine (Debian: apt-get install imagej)")
    labels = voxels(highest)
    array = zarr.create_array({}, shape=SHAPE, dtype=np.uint8 if highest < 256 else np.uint32, chunks=(4, 64, 64))
    array[...] = labels
    classes = 3 if highest == 3 else None
    path = tmp_path / "volume_mask.tif"
    write_tiff(path, LabelFile(array, SPACING, np.eye(4), highest, classes, in_mm=False))
    told, screen, macro = tmp_path / "told.txt", tmp_path / "screen.tif", tmp_path / "read.ijm"
    macro.write_text(MACRO.format(tiff=path, told=told, screen=screen, x=20, y=10))
    environment = os.environ | {"DISPLAY": virtual_screen, "HOME": str(tmp_path)}
    command = [java, f"-Duser.home={tmp_path}", "-Xmx512m", "-jar", str(JAR), "-macro", str(macro)]
    subprocess.run(command, env=environment, timeout=120, check=True, capture_output=True)

    dimensions, size, *values = told.read_text().split("\n")
    assert [int(n) for n in dimensions.split()] == [SHAPE[2], SHAPE[1], 1, SHAPE[0], 1, bits]
    assert [float(n) for n in size.split()[:3]] == pytest.approx(SPACING[::-1], rel=1e-5)
    assert size.split()[3] in ("um", "µm", "micron", "microns")
    expected = [f"{labels[k, 10, 20]} {labels[k, 0, -1]}" for k in range(SHAPE[0])]
    assert values[: SHAPE[0]] == expected
    shown = {tuple(colour) for colour in np.unique(tifffile.imread(screen).reshape(-1, 3), axis=0).tolist()}
    if classes:
        assert shown.issuperset(class_colours(3))  # on the screen, at the plane in the middle
