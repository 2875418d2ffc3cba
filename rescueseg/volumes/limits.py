"""The thresholds of the consistency check, each with its reason.

The figures in the reasons come from comparing the halves of single volumes with each other and volumes of different
microscopes: nuclei, ovules and vessels in light, neuropil in electron microscopes.
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """A threshold, its unit and why it lies there."""

    value: float
    unit: str
    reason: str


LIMITS = {
    "shape": Limit(
        0.30,
        "standard deviations",
        "Wasserstein distance of standardised quantiles; halves of one volume differ by 0.06, seldom by more than 0.2, "
        "other kinds of image mostly by 0.3 to 0.7",
    ),
    "scale": Limit(
        0.50,
        "standard deviations",
        "Wasserstein distance of raw quantiles; content alone moves halves of one volume by 0.1 to 0.4, another gain or "
        "bit depth by more than 1",
    ),
    "spacing": Limit(
        2.0,
        "ratio along any axis",
        "beyond it, resampling would have to invent or to throw away more than half of the detail",
    ),
    "sharpness": Limit(
        2.0,
        "ratio of blur in µm",
        "halves of one volume differ by up to 1.5; another objective or a deconvolution by 2 and more",
    ),
    "alike_texture": Limit(
        0.10,
        "share of the variance",
        "mean distance of the variograms in voxels; halves of one volume differ by 0.05, seldom by 0.1",
    ),
    "alike_shape": Limit(0.20, "standard deviations", "as shape, but only volumes of one kind vouch for a spacing"),
    "alike_noise": Limit(0.15, "share of the variance", "halves of one volume differ by up to 0.11"),
    "alike_blur": Limit(1.5, "ratio in pixels", "halves of one volume differ by up to 1.5"),
    "tag": Limit(
        1.4,
        "ratio along any axis",
        "structures in halves of one volume differ in length by 1.1, seldom by more than 1.4",
    ),
    "tag_texture": Limit(
        0.05,
        "share of the variance",
        "by how much variograms must agree better in voxels than in micrometre, and twice as well: by as much as halves "
        "of one volume differ",
    ),
    "finest": Limit(1e-4, "µm", "an atom's width: no volume microscope resolves it; a unit was misread"),
    "coarsest": Limit(100.0, "µm", "a voxel larger than cells: a unit or a print resolution was misread"),
    "clipped": Limit(0.01, "share of voxels", "above it, the brightest structures have lost their texture"),
    "saturated": Limit(0.25, "share of voxels", "above it, most of what is bright is one flat value"),
    "squashed": Limit(4.0, "ratio", "structures so much shorter or longer along z than in the plane are rare"),
    "edges": Limit(1.0, "pixels", "blur below one pixel of the coarser volume cannot be compared"),
}


def limit(name: str) -> float:
    """Return a threshold's value."""
    return LIMITS[name].value
