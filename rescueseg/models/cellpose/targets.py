"""What Cellpose learns of a patch: in each plane, the flows from the pixels of a section to its middle.

A section that the patch cuts, or that touches what nobody labelled, has its middle somewhere out of sight: its flows are not
learned, that it is a cell is. Flows are of unit length, by `cellpose.dynamics` (Stringer et al. 2021,
doi:10.1038/s41592-020-01018-x): the gradient of what diffuses from the section's middle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from cellpose.dynamics import masks_to_flows_cpu
from torch import Tensor, nn
from torch.nn import functional

from rescueseg.geometry import Spacing
from rescueseg.labels import IGNORE
from rescueseg.models.border_distance import UNKNOWN, Ends
from rescueseg.models.cellpose.network import FLOW_SCALE
from rescueseg.models.cellpose.sections import cut_sections, number_sections
from rescueseg.models.training_items import Targets

Float32 = npt.NDArray[np.float32]


def plane_flows(objects: npt.NDArray[np.integer], unlabelled: npt.NDArray[np.bool_], axis: int) -> Float32:
    """Return the flows in the planes perpendicular to an axis.

    Parameters
    ----------
    objects : ndarray of integers, zyx
        Numbers of the objects, 0 background.
    unlabelled : ndarray of bool, zyx
        Voxels that nobody labelled. What lies beyond the array counts as unlabelled too.
    axis : int
        0 for yx planes, 1 for zx, 2 for zy.

    Returns
    -------
    ndarray of float32, (2, z, y, x)
        Along the first and the second axis of the planes, mapped from -1…1 to 0…1; 0.5 is the background, where nothing flows.
        `UNKNOWN` at unlabelled voxels, in sections that are cut, and where no flow leads, as in pieces apart from the middle.
    """
    sections = number_sections(np.where(unlabelled, 0, objects), axis)
    cut = cut_sections(sections, unlabelled, axis)
    planes = np.moveaxis(np.where(cut[sections], 0, sections), axis, 0)
    flows = np.zeros((2, *planes.shape), np.float32)
    for index, plane in enumerate(planes):
        if plane.any():
            numbers = np.unique(plane, return_inverse=True)[1].reshape(plane.shape)
            flows[:, index] = masks_to_flows_cpu(numbers + (plane.min() > 0))[0]
    flows = np.moveaxis(flows, 1, 1 + axis)
    known = ~unlabelled & ((sections == 0) | (np.abs(flows).max(axis=0) > 0))
    return np.where(known, (flows + 1) / 2, np.float32(UNKNOWN)).astype(np.float32)


def flow_targets(axis: int) -> Targets:
    """Return what makes the flows in the planes perpendicular to an axis the targets beside the classes."""

    def make(
        objects: npt.NDArray[np.int32],
        unlabelled: npt.NDArray[np.bool_],
        spacing_um_zyx: Spacing,  # noqa: ARG001  # flows are of unit length
        ends: Ends,  # noqa: ARG001  # where the volume ends, the middle of a section may lie out of sight too
    ) -> Float32:
        return plane_flows(objects, unlabelled, axis)

    return make


class FlowLoss(nn.Module):
    """Cellpose's loss over what is known: half the squared difference of the scaled flows, and binary cross-entropy."""

    def forward(self, said: Tensor, labels: Tensor, flows: Tensor) -> Tensor:
        """Return the loss; zero, with zero gradient, where nothing is known.

        Parameters
        ----------
        said : Tensor of float32, shape (n, 3, h, w)
            Scaled flows and the logit of the cell probability.
        labels : Tensor of integers, shape (n, h, w)
            0, 1 or 255.
        flows : Tensor of float32, shape (n, 2, h, w)
            From -1 to 1, NaN where not known.
        """
        known = torch.isfinite(flows)
        difference = torch.where(known, said[:, :2] - FLOW_SCALE * flows.nan_to_num(), 0.0)
        labelled = labels != IGNORE
        entropy = functional.binary_cross_entropy_with_logits(said[:, 2], (labels == 1).float(), reduction="none")
        loss: Tensor = difference.square().sum() / (2 * known.sum().clamp(min=1))
        return loss + (entropy * labelled).sum() / labelled.sum().clamp(min=1)


def decode_flows(targets: Tensor) -> Tensor:
    """Return flows from -1 to 1, NaN where they are not known, of targets from `plane_flows`."""
    return torch.where(targets >= 0, 2 * targets - 1, torch.nan)
