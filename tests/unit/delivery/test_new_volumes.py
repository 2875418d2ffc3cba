from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import CAMPAIGN_FILE
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import NewVolumes, expand
from rescueseg.delivery.source_digest import source_digest
from rescueseg.errors import ConfigError, UnreadableVolumeError, VolumeError
from rescueseg.queue.store import open_queue
from rescueseg.stages import snapshot
from rescueseg.storage import Storage
from rescueseg.volumes.normalise import limits, normalise, with_linear
from rescueseg.volumes.opening import open_image
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport
from tests.whole_campaign import make_annotated_campaign

SPACING = (0.2, 0.1, 0.1)


def write(path: Path, image: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> None:
    z, y, x = spacing
    metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
    tifffile.imwrite(path, image, imagej=True, resolution=(1 / x, 1 / y), metadata=metadata)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    campaign = make_annotated_campaign(tmp_path_factory.mktemp("trained"))
    store = open_queue(campaign)
    store.ledger.begin_generation(0, 3)
    snapshot.make_snapshot(campaign, 0, store)
    return campaign


def new_volumes(campaign: Campaign, out: Path) -> NewVolumes:
    trained = {item.volume_id for item in campaign.generation(0).require(snapshot.SNAPSHOT).items}
    return NewVolumes(campaign, DeliveryFolder(str(out)), frozenset(trained))


def test_files_are_brought_to_what_the_model_has_learned(campaign: Campaign, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    image = make_phantom((16, 64, 64), SPACING, 7)[0]
    write(files / "alike.tif", image)
    write(files / "brighter.tif", (image * 3 + 500).astype(np.uint16))
    write(files / "coarser.tif", image[:, ::2, ::2], (0.2, 0.2, 0.2))
    noise = np.random.default_rng(1).exponential(300, (16, 64, 64)) ** 2
    write(files / "foreign.tif", np.clip(noise / 50, 0, 65535).astype(np.uint16))
    (files / "notes.txt").write_text("Tuesday")

    imports, passed_over = expand([str(files)], VolumeImport(""))
    assert [volume.name for volume in imports] == ["alike", "brighter", "coarser", "foreign"]
    assert len(passed_over) == 1
    assert passed_over[0].startswith("notes.txt: ")
    new = new_volumes(campaign, tmp_path / "out")
    alike, brighter, coarser, foreign = (new.add(volume) for volume in imports)

    domains = {campaign.volumes.record(v).domain for v in new.trained}
    assert {alike.record.domain, brighter.record.domain} <= domains
    assert foreign.record.domain not in domains
    assert "unlike what the model has learned" in foreign.warnings[0]
    assert not alike.warnings
    assert any(c.isdigit() for c in foreign.warnings[0])
    assert coarser.record.spacing_um_zyx == pytest.approx((0.2, 0.2, 0.2))
    scaled = []  # a gain and an offset of the microscope do not show after scaling
    for volume in (alike, brighter):
        voxels = np.asarray(open_image(new.work.volumes, volume.record.volume_id)[0], np.float64)
        scaled.append((voxels - volume.record.normalisation.mean) / volume.record.normalisation.std)
    assert np.abs(scaled[0] - scaled[1]).mean() < 0.25  # standard deviations; unmapped they are some 4 apart
    assert set(campaign.volumes.ids()) == {"a", "b"}


def test_files_are_held_against_what_the_chosen_model_has_learned_alone(tmp_path: Path) -> None:
    campaign = make_annotated_campaign(tmp_path)  # no generation was trained
    new = NewVolumes(campaign, DeliveryFolder(str(tmp_path / "out")), frozenset({"a"}))
    image = make_phantom((16, 64, 64), SPACING, 7)[0]
    write(tmp_path / "alike.tif", image)
    noise = np.random.default_rng(1).exponential(3, (48, 96, 96)) ** 5  # more voxels than the model has seen
    write(tmp_path / "foreign.tif", np.clip(noise, 0, 65535).astype(np.uint16))
    learned = campaign.volumes.record("a")
    alike = new.add(VolumeImport(str(tmp_path / "alike.tif")))
    assert alike.record.normalisation == learned.normalisation  # not measured anew with the file's own voxels
    assert alike.record.domain == learned.domain
    assert alike.warnings == ()
    foreign = new.add(VolumeImport(str(tmp_path / "foreign.tif")))
    assert foreign.likeness.endswith("scaled by its own intensities")
    [warning, *_] = foreign.warnings
    assert "unlike what the model has learned" in warning
    assert any(c.isdigit() for c in warning)


def test_what_an_older_model_is_given_is_scaled_as_what_it_has_learned(tmp_path: Path) -> None:
    campaign = make_annotated_campaign(tmp_path)
    for record in campaign.volumes.records():
        old = with_linear(record.normalisation, 0)
        campaign.volumes.save(record.model_copy(update={"normalisation": old}))
    new = NewVolumes(campaign, DeliveryFolder(str(tmp_path / "out")), frozenset({"a", "b"}))
    write(tmp_path / "alike.tif", make_phantom((16, 64, 64), SPACING, 7)[0])
    noise = np.random.default_rng(1).exponential(3, (16, 64, 64)) ** 5
    write(tmp_path / "foreign.tif", np.clip(noise, 0, 65535).astype(np.uint16))
    for name in ("alike", "foreign"):
        volume = new.add(VolumeImport(str(tmp_path / f"{name}.tif")))
        assert volume.record.normalisation.linear == 0
        assert new.work.volumes.record(name).normalisation == volume.record.normalisation
        _, high = limits(volume.record.normalisation)
        image = np.asarray(open_image(new.work.volumes, name)[:])
        assert normalise(image, volume.record.normalisation).max() == pytest.approx(high), "clipped, as in its training"


def test_a_file_is_imported_once_and_another_of_its_name_refused(campaign: Campaign, tmp_path: Path) -> None:
    file = tmp_path / "new.tif"
    write(file, make_phantom((16, 64, 64), SPACING, 8)[0])
    new, volume = new_volumes(campaign, tmp_path / "out"), VolumeImport(str(file))
    first = new.add(volume)
    chunk = next(p for p in (tmp_path / "out/work/volumes/new.ome.zarr").rglob("*") if p.name == "0" and p.is_file())
    before = chunk.stat().st_mtime_ns
    assert new.add(volume) == first
    assert chunk.stat().st_mtime_ns == before
    write(file, make_phantom((16, 64, 64), SPACING, 9)[0])
    with pytest.raises(VolumeError, match="has changed since"):
        new.add(volume)


def test_what_cannot_be_delivered_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    new = new_volumes(campaign, tmp_path / "out")
    write(tmp_path / "a.tif", make_phantom((16, 64, 64), SPACING, 8)[0])
    with pytest.raises(VolumeError, match="has a volume 'a' already"):
        new.add(VolumeImport(str(tmp_path / "a.tif")))
    write(tmp_path / "flat.tif", np.full((16, 64, 64), 7, np.uint16))
    with pytest.raises(VolumeError, match="there is nothing to see"):
        new.add(VolumeImport(str(tmp_path / "flat.tif")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableVolumeError, match="holds no volume"):
        expand([str(tmp_path / "empty")], VolumeImport(""))


def test_no_secret_of_the_campaign_lies_in_the_delivery(campaign: Campaign, tmp_path: Path) -> None:
    secret = campaign.config.model_copy(update={"database_url": "postgresql://lab:secret@db/queue"})
    new = new_volumes(Campaign(campaign.storage, secret), tmp_path / "out")
    assert b"secret" not in new.work.storage.read_bytes(CAMPAIGN_FILE.path())


def test_changed_planes_of_a_pattern_and_changed_stores_elsewhere_are_seen(tmp_path: Path) -> None:
    for z in range(3):
        tifffile.imwrite(tmp_path / f"{z}.tif", np.full((8, 8), z, np.uint8))
    pattern = VolumeImport(str(tmp_path / "*.tif"))
    before = source_digest(pattern)
    assert source_digest(pattern) == before
    tifffile.imwrite(tmp_path / "1.tif", np.full((8, 9), 7, np.uint8))
    assert source_digest(pattern) != before
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["image"] = np.zeros((2, 2, 2))
    dataset = VolumeImport(f"{tmp_path}/stack.h5:image")
    before = source_digest(dataset)
    with h5py.File(tmp_path / "stack.h5", "a") as file:
        file["image"][...] = 1
        file["more"] = np.zeros(2000)
    assert source_digest(dataset) != before
    for name in ("stack.ome.zarr/zarr.json", "stack.ome.zarr/0/zarr.json", "stack.tif"):
        Storage("memory://changed").write_bytes(name, b"{}")
    for path, changed in (("stack.ome.zarr", "0/zarr.json"), ("stack.tif", "")):
        store = VolumeImport(f"memory://changed/{path}")
        before = source_digest(store)
        assert source_digest(store) == before
        Storage("memory://changed").write_bytes(f"{path}/{changed}".rstrip("/"), b"{ }")
        assert source_digest(store) != before


def test_two_files_of_one_name_are_both_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / "monday" / "liver.tif"), str(tmp_path / "tuesday" / "liver.nrrd")]
    with pytest.raises(ConfigError, match="two volumes would be called 'liver'") as caught:
        expand(paths, VolumeImport(""))
    assert all(path in caught.value.where for path in paths)


def test_a_folder_of_planes_is_one_volume(tmp_path: Path) -> None:
    folder = tmp_path / "planes"
    folder.mkdir()
    for z in range(4):
        tifffile.imwrite(folder / f"{z}.tif", np.full((32, 32), z, np.uint8))
    imports, passed_over = expand([str(folder)], VolumeImport("", spacing=SPACING))
    assert [volume.path for volume in imports] == [str(folder)]
    assert passed_over == []
