"""The volume of a benchmark comes from files or a campaign as it is there, cropped, and goes into its campaigns unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.config import check_config
from rescueseg.errors import ConfigError, LabelError
from rescueseg.geometry import Box
from rescueseg.simulation.annotated_volume import VOLUME, AnnotatedVolume, read_campaign, read_files
from rescueseg.volumes import open_image, open_truth
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

CROP = Box((2, 4, 8), (6, 20, 16))
SPACING = (0.3, 0.1, 0.2)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 4000, (2, 10, 24, 28)).astype(np.uint16), rng.integers(0, 300, (10, 24, 28)).astype(
        np.uint16
    )


def written(folder: Path, image: np.ndarray, truth: np.ndarray) -> VolumeImport:
    tifffile.imwrite(folder / "i.tif", image.swapaxes(0, 1), imagej=True, metadata={"axes": "ZCYX"})
    tifffile.imwrite(folder / "t.tif", truth, metadata={"axes": "ZYX"})
    return VolumeImport(
        str(folder / "i.tif"), volume_id="v", spacing=SPACING, truth=str(folder / "t.tif"), truth_type="instance"
    )


def test_files_and_campaigns_give_the_same_crop(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = arrays
    files = written(tmp_path, image, truth)
    config = check_config({"name": "c", "classes": ["nucleus"]})
    campaign = Campaign.create(str(tmp_path / "campaign"), config)
    import_volume(campaign, files)
    for found in (
        read_files(files, ["nucleus"], CROP),
        read_campaign(campaign, "v", CROP),
        read_campaign(campaign, crop=CROP),
    ):
        np.testing.assert_array_equal(found.image, image[(slice(None), *CROP.slices)])
        np.testing.assert_array_equal(found.truth, truth[CROP.slices])
        assert (found.spacing_um_zyx, found.truth_type, found.classes) == (SPACING, "instance", ("nucleus",))
    assert read_files(files, ["nucleus"]).shape_zyx == (10, 24, 28)


def test_what_is_written_is_imported_unchanged(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = arrays
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "c", "classes": ["nucleus"]}))
    volume = AnnotatedVolume(image, truth, SPACING, "instance", ("nucleus",))
    import_volume(campaign, volume.write(tmp_path / "files"))
    assert campaign.volumes.record(VOLUME).spacing_um_zyx == SPACING
    np.testing.assert_array_equal(np.asarray(open_image(campaign.volumes, VOLUME)[:]), image)
    np.testing.assert_array_equal(np.asarray(open_truth(campaign.volumes, VOLUME, instances=True)[:]), truth)
    np.testing.assert_array_equal(np.asarray(open_truth(campaign.volumes, VOLUME)[:]), truth > 0)


def test_numbers_and_masks_that_a_tiff_does_not_hold_are_kept(tmp_path: Path) -> None:
    labels = np.zeros((4, 8, 8), np.int64)
    labels[1, 2, 3] = 70_000
    for truth in (labels, labels > 0):
        volume = AnnotatedVolume(np.zeros((1, 4, 8, 8), np.uint8), truth, SPACING, "instance", ("nucleus",))
        stored = tifffile.imread(volume.write(tmp_path / "files").truth)
        np.testing.assert_array_equal(stored, truth)


def test_a_volume_without_truth_is_refused(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    files = written(tmp_path, *arrays)
    with pytest.raises(LabelError, match="needs ground truth"):
        read_files(VolumeImport(files.path, spacing=SPACING), ["nucleus"])
    campaign = Campaign.create(str(tmp_path / "campaign"), check_config({"name": "c", "classes": ["nucleus"]}))
    import_volume(campaign, VolumeImport(files.path, volume_id="v", spacing=SPACING))
    with pytest.raises(ConfigError, match="0 volumes have a truth"):
        read_campaign(campaign)
    with pytest.raises(ConfigError, match="no volume 'w' with ground truth"):
        read_campaign(campaign, "w")
