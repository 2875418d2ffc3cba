"""Every file format on real volumes: leased, opened, drawn, handed in, accepted, in the next snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.formats import FORMATS, read_labels
from rescueseg.annotation.formats.base import Frame, PatchFormat, relabel, write_labels_and_ignore
from rescueseg.annotation.formats.handout import lease_of, write_patch
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from tests.next_snapshot import next_labels

VOLUMES = {
    "vesselnn_burgess2014_tgMouse": ("semantic", Box((3, 150, 200), (8, 40, 48))),
    "bbbc050_mosaic_train": ("instance", Box((10, 30, 25), (16, 60, 64))),
    "gonuclear_1135": ("instance", Box((30, 20, 40), (24, 40, 44))),
}


@pytest.fixture(scope="module", params=list(VOLUMES))
def laid(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Campaign, PatchLabels]:
    """Return a campaign with a crop of a real volume and one ticket for each format, and the truth of their patch."""
    name = request.param
    labels, box = VOLUMES[name]
    folder = tmp_path_factory.mktemp(name)
    spacing = json.loads((real_data / name / "meta.json").read_text())["voxel_size_um_zyx"]
    raw, truth = (tifffile.imread(real_data / name / f"{what}.tif") for what in ("raw", "labels"))
    around = box.expand((3, 20, 20)).clip(raw.shape)
    tifffile.imwrite(folder / "raw.tif", raw[around.slices])
    config = {"name": "real", "classes": ["structure"], "annotation": {"labels": labels}}
    campaign = Campaign.create(str(folder / "campaign"), check_config(config))
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "raw.tif"), volume_id="v", spacing=tuple(spacing))
    )
    inside = box.relative_to(around)
    open_queue(campaign).tickets.add([NewTicket(ticket_id=kind.name, volume_id="v", box=inside) for kind in FORMATS])
    unseen = np.zeros(box.shape_zyx, np.bool_)
    unseen[:, :3] = True
    found = truth[box.slices].astype(np.uint32)
    assert found.any()
    if labels == "instance":
        return campaign, relabel(PatchLabels.of_instances(found, unseen))
    return campaign, PatchLabels(np.where(unseen, np.uint8(255), (found > 0).astype(np.uint8)))


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_what_was_drawn_is_accepted_voxel_for_voxel(
    laid: tuple[Campaign, PatchLabels], kind: PatchFormat, tmp_path: Path
) -> None:
    campaign, truth = laid
    client = LocalClient(campaign, open_queue(campaign), "anna")
    lease = client.next(ticket_id=kind.name)
    assert lease is not None
    view = client.view(lease.lease_id)
    files = write_patch(kind, tmp_path, lease, view, client.info())
    frame = Frame.of(view, client.info())
    write_labels_and_ignore(kind, files.labels, truth, frame)
    assert lease_of(files.labels, client.leases()).lease_id == lease.lease_id
    client.submit(lease.lease_id, read_labels(files.labels, frame), kind.name, override=True)
    assert np.array_equal(next_labels(campaign, kind.name, "v", lease.ticket.box), truth.classes)
    assert client.version_labels(kind.name, 1) == truth
