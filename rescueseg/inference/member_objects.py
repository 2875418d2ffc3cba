"""The objects of each member of a predictive distribution in a window, and how much the members disagree about them.

A member counts once for each thing that it says of objects (`rescueseg.inference.quick_objects`). Where dropout samples of a
network and a symmetry say the same of them (`Output.sampled`), they are one member, whose foreground is that of their mean.
Objects are those of the window: what its faces cut is cut alike in all members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rescueseg.errors import InferenceError
from rescueseg.geometry import Spacing
from rescueseg.inference.object_disagreement import object_disagreement
from rescueseg.inference.quick_objects import Numbers, number_by, number_polyhedra, object_output
from rescueseg.models.predictor import OBJECT_PROBABILITY, PROBABILITY, STAR_DISTANCE, Group, Output


class MemberObjects:
    """The objects of some windows by each member, which come one at a time.

    Parameters
    ----------
    outputs : sequence of Output
        Of the model; one of them tells objects apart.
    spacing_um_zyx : tuple of float
        Voxel size in micrometre.

    Raises
    ------
    ValueError
        If no output tells objects apart.
    """

    def __init__(self, outputs: Sequence[Output], spacing_um_zyx: Spacing) -> None:
        output = object_output(outputs)
        if output is None:
            raise ValueError("none of the outputs tells objects apart")
        self._output, self._spacing = output, spacing_um_zyx
        self._latest: Group | None = None
        self._said: list[npt.NDArray[Any]] = []
        """Of each window what the open member says, whatever is foreground: polyhedra, or the output itself."""
        self._background, self._samples = torch.zeros(()), 0
        self._numberings: list[list[Numbers]] = []

    def add(self, group: Group, member: Mapping[str, Tensor]) -> None:
        """Take in one member, neither changed nor kept; all samples of a network and a symmetry must follow one another.

        Parameters
        ----------
        group : Group
            Its network and its symmetry.
        member : mapping of str to Tensor of float32, shape (n, channels, z, y, x)
            Its outputs by name, in n windows.
        """
        background = member[PROBABILITY][:, 0]
        if self._output.sampled or group != self._latest:
            self._close()
            self._background, self._samples = torch.zeros_like(background), 0
            self._said = [self._say(member, window) for window in range(len(background))]
        self._latest = group
        self._background += background
        self._samples += 1

    def _say(self, member: Mapping[str, Tensor], window: int) -> npt.NDArray[Any]:
        said = member[self._output.name][window]
        if self._output.name != STAR_DISTANCE:
            copy: npt.NDArray[np.float32] = np.nan_to_num(said.cpu().numpy())
            return copy  # the statistics refuse what is not finite
        probability = member[OBJECT_PROBABILITY][window, 0].cpu().numpy()
        return number_polyhedra(probability, lambda box: said[(slice(None), *box.slices)].cpu().numpy(), self._spacing)

    def _close(self) -> None:
        """Make the objects of the open member, whose samples are all there."""
        if self._said:
            inside = (self._background < self._samples / 2).cpu().numpy()
            self._numberings.append([self._number(*of) for of in zip(self._said, inside, strict=True)])
        self._said = []

    def _number(self, said: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> Numbers:
        if self._output.name == STAR_DISTANCE:
            return np.where(inside, said, np.uint32(0))
        return number_by(self._output.name, said, inside, self._spacing)

    def disagreement(self) -> Tensor:
        """Return how much the members disagree, float32, shape (n, z, y, x), on the CPU; none can be added after it.

        Raises
        ------
        InferenceError
            If there is one member alone.
        """
        self._close()
        if len(self._numberings) < 2:
            raise InferenceError(
                "there is one member alone, which cannot disagree about objects",
                where="query.strategy",
                todo="Set inference.tta_symmetries to 2 or more; or training.members, or inference.mc_samples where dropout "
                "changes the objects, which it does not in StarDist's models",
            )
        of_windows = [object_disagreement(numberings) for numberings in zip(*self._numberings, strict=True)]
        return torch.from_numpy(np.stack(of_windows))
