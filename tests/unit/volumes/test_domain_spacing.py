"""The spacing of the recorded domain decides, and volumes of another one are resampled alike by training and inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rescueseg.campaign import Campaign
from rescueseg.errors import SamplingError
from rescueseg.geometry import Box, Spacing
from rescueseg.models.training_items import load_item
from rescueseg.models.unet.network import build_network
from rescueseg.models.unet.predictor import UNetPredictor
from rescueseg.models.unet.trainer import plan_training
from rescueseg.records import Domain, Domains, Normalisation
from rescueseg.volumes import open_image
from rescueseg.volumes.normalise import normalise, read_box
from tests.training_rig import SPACING, make_campaign, make_snapshot

COMMON = Normalisation(low=0, high=4000, mean=700, std=300)
OWN = Normalisation(low=0, high=3000, mean=500, std=250)


def record_domain(campaign: Campaign, spacing: Spacing = SPACING) -> None:
    volumes = {"v0": COMMON, "v1": OWN}
    campaign.volumes.save_domains(
        Domains(domains=(Domain(name="d", spacing_um_zyx=spacing, normalisation=COMMON, volumes=volumes),))
    )


@pytest.mark.parametrize("other", [(0.4, 0.2, 0.2), (0.2, 0.05, 0.05), (0.1, 0.08, 0.08)])
def test_training_and_inference_see_the_same_voxels(tmp_path: Path, other: Spacing) -> None:
    campaign = make_campaign(tmp_path, spacings=(SPACING, other))
    record_domain(campaign)
    first = plan_training(
        campaign.config, campaign.volumes, make_snapshot(campaign, [Box((0, 0, 0), (4, 8, 8))], volume_ids=["v1"])
    )
    assert first.spacing_um_zyx == SPACING, "the domain's, though only the other volume is labelled"
    predictor = UNetPredictor([build_network(first.network, 0)], first, campaign.config.inference, "cpu")
    window = Box((0, 0, 0), predictor.window_zyx(other))
    shape = campaign.volumes.record("v1").shape_zyx
    if not Box((0, 0, 0), shape).contains(window):
        window = window.clip(shape)
    [item] = make_snapshot(campaign, [window], volume_ids=["v1"]).items
    trained = load_item(campaign.volumes, item, first.spacing_um_zyx).image

    seen: list[torch.Tensor] = []
    [network] = predictor._networks
    features = network.features
    network.features = lambda images: (seen.append(images.clone()), features(images))[1]  # type: ignore[method-assign]
    predictor._window = trained.shape[1:]
    image = normalise(read_box(open_image(campaign.volumes, "v1"), window), campaign.volumes.record("v1").normalisation)
    members = list(predictor.members(image[None], [0]))
    assert trained.shape[1:] != window.shape_zyx
    np.testing.assert_array_equal(seen[0][0].numpy(), trained)
    assert members[0][1]["probability"].shape[2:] == window.shape_zyx
    assert campaign.volumes.record("v1").normalisation == OWN


def test_without_a_record_the_labelled_volumes_decide(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, spacings=(SPACING, (0.4, 0.2, 0.2)))
    snapshot = make_snapshot(campaign, [Box((0, 0, 0), (4, 8, 8))], volume_ids=["v1"])
    assert plan_training(campaign.config, campaign.volumes, snapshot).spacing_um_zyx == (0.4, 0.2, 0.2)
    record_domain(campaign, (0.3, 0.15, 0.15))
    assert plan_training(campaign.config, campaign.volumes, snapshot).spacing_um_zyx == (0.3, 0.15, 0.15)


def test_annotations_in_refused_volumes_are_not_trained_on(tmp_path: Path) -> None:
    from rescueseg.campaign.snapshot import make_snapshot as freeze
    from rescueseg.records import Holdout
    from tests.unit.campaign.test_snapshot import annotation

    campaign = make_campaign(tmp_path, spacings=(SPACING, SPACING))
    campaign.freeze_holdout(Holdout(boxes=(), guard_zyx=(1, 1, 1)))
    accepted = [
        annotation(f"t{i}", Box((0, 0, 0), (4, 8, 8)), volume_id=f"v{i}", annotation_id=f"n{i}") for i in (0, 1)
    ]
    assert [i.volume_id for i in freeze(campaign, 0, accepted).items] == ["v0", "v1"]
    kept = Domain(name="d", spacing_um_zyx=SPACING, normalisation=COMMON, volumes={"v0": COMMON})
    campaign.volumes.save_domains(Domains(domains=(kept,), refused={"v1": "its spacing is wrong"}))
    assert [i.volume_id for i in freeze(campaign, 1, accepted).items] == ["v0"]
    with pytest.raises(SamplingError, match="refused volumes: v1"):
        freeze(campaign, 2, accepted[1:])
