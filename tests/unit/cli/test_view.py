"""`rescueseg view` where it cannot open a window."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import TRAINING, TrainingResult
from rescueseg.cli.view import view
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.errors import ServiceError, StorageError
from rescueseg.records import ModelReference
from tests.delivered_campaign import deliver, write_delivery


@pytest.fixture
def delivery(campaign: Campaign, tmp_path: Path) -> DeliveryFolder:
    model = ModelReference(generation=0, trainer="monai_unet", path="m", digest="d" * 64)
    campaign.generation(0).write(TRAINING, TrainingResult(model=model, iterations=1))
    folder, mask = DeliveryFolder(str(tmp_path / "out")), np.ones((4, 8, 8), np.uint8)
    write_delivery(campaign, folder)
    deliver(campaign, folder, "stack", mask, None, mask)
    return folder


def test_without_napari_the_command_that_installs_it_is_named(
    delivery: DeliveryFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"pip install 'rescueseg\[napari\]'"):
        view(delivery.url)


def test_what_is_not_delivered_is_named(delivery: DeliveryFolder, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no volume .stick. is delivered here.*Name one of these: stack"):
        view(delivery.url, "stick")
    with pytest.raises(StorageError, match="no volume is delivered here"):
        view(str(tmp_path))
