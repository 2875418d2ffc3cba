"""Cellpose's network in training: what its batches are, and how it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from rescueseg.models.cellpose.network import CellposeNetwork, build_network, lay_out, set_weights
from rescueseg.models.cellpose.plan import CellposePlan
from rescueseg.models.cellpose.planes import Planes, PlaneSet
from rescueseg.models.cellpose.targets import FlowLoss
from rescueseg.models.network_run import NetworkRun, RunStart
from rescueseg.models.precision import Precision, autocast_dtype


class Run(NetworkRun[CellposeNetwork, Planes]):
    """One `CellposeNetwork` in training; whoever makes one closes its `batches`.

    Parameters
    ----------
    start : RunStart
        Where it begins.
    data : PlaneSet
        Planes.
    plan : CellposePlan
        What is trained, and how.
    """

    weight_decay = 1e-5

    def __init__(self, start: RunStart, data: PlaneSet, plan: CellposePlan) -> None:
        device = torch.device(start.device)
        self.data, self.plan, self.loss = data, plan, FlowLoss()
        network = build_network(plan, start.seed)
        if start.weights is not None:
            set_weights(network, start.weights)
        network.to(device).train()
        if device.type == "cpu":
            network.to(memory_format=torch.channels_last)
        precision = Precision(None if device.type == "cpu" else autocast_dtype(device))
        super().__init__(start, plan, network, precision)

    def _get_weights(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        set_weights(self.network, weights)

    def _loss(self, batch: Planes) -> Tensor:
        """Return the loss of the planes of a batch."""
        planes = batch.to(self.device)
        masks = self._dropout_masks(len(planes.images))[0] if self.plan.dropout > 0 else None
        with self._autocast():
            said = self.network(lay_out(planes.images), masks)
        loss: Tensor = self.loss(said.float(), planes.labels, planes.flows)
        return loss

    def _prepare(self, step: int) -> Planes:
        """Return the planes of a step, with a GPU ready to be copied there."""
        planes = self.data.batch(self.seed, step)
        if self.device.type != "cuda":
            return planes
        with torch.cuda.device(self.device):
            return planes.pinned()
