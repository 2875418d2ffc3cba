"""Files beside a delivery, read back by the libraries that other programs read them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import tifffile
import zarr

from rescueseg.campaign import Campaign
from rescueseg.delivery import export, label_files
from rescueseg.delivery.export import bytes_of_delivery, export_labels
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.label_colours import class_colours
from rescueseg.delivery.records import CleanUp, DeliveryRule, ExportedFile
from rescueseg.delivery.request import Format
from rescueseg.delivery.step import Step
from rescueseg.delivery.target import TargetVolume
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import create_label_image
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.delivered_campaign import source
from tests.evaluated_campaign import SHAPE, SPACING, make_campaign

Array = npt.NDArray[Any]
FORMATS: tuple[Format, ...] = ("tiff", "nifti", "nrrd")
BLOCK = (8, 40, 56)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return make_campaign(tmp_path_factory.mktemp("export"))


def labels(highest: int = 70_000) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.integers(0, 3, (*SHAPE[:2], SHAPE[2] // 8)), 8, axis=2).astype(np.uint8)
    objects = mask * rng.integers(1, highest, SHAPE).astype(np.uint32)
    objects[3, 4, 5] = highest
    return mask, np.minimum(objects, highest)


def target_of(
    campaign: Campaign, url: str, mask: Array, objects: Array | None, volume: str = "phantom"
) -> TargetVolume:
    rule = DeliveryRule(
        model_digest="m",
        truth_digest="",
        cleanup=(CleanUp(), CleanUp()),
        objects=None if objects is None else ObjectRule(source="pieces"),
    )
    out = DeliveryFolder(url)
    target = TargetVolume(source(campaign, volume), out, rule, mask.shape, SPACING, BLOCK)
    zarr.create_group(target.image_url, overwrite=True, zarr_format=3)
    for name, array in (("mask", mask), ("objects", objects)):
        if array is not None:
            layout = ImageLayout(mask.shape, array.dtype, SPACING, chunks=BLOCK, shards=BLOCK, name=name)
            create_label_image(target.image_url, layout)[...] = array
    return target


def run(target: TargetVolume, formats: Sequence[Format] = FORMATS, digest: str = "d") -> tuple[ExportedFile, ...]:
    return export_labels(target, Step(target.out.pass_url(target.volume_id, "export"), digest), formats)


@pytest.mark.parametrize("slab", [1 << 28, 100_000, 1])
def test_voxels_and_spacing_are_read_back(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    monkeypatch.setattr(label_files, "_SLAB_BYTES", slab)
    mask, objects = labels()
    files = run(target_of(campaign, str(tmp_path), mask, objects))
    assert [f.path for f in files] == [
        f"phantom_{name}{ending}" for ending in (".tif", ".nii.gz", ".nrrd") for name in ("mask", "objects")
    ]
    assert [f.bytes for f in files] == [(tmp_path / f.path).stat().st_size for f in files]
    for name, array in (("mask", mask), ("objects", objects)):
        with tifffile.TiffFile(tmp_path / f"phantom_{name}.tif") as tif:
            assert tif.is_imagej
            np.testing.assert_array_equal(tif.asarray(), array)
            assert (tif.imagej_metadata["spacing"], tif.imagej_metadata["unit"]) == (SPACING[0], "um")
            assert tif.pages[0].resolution == pytest.approx((1 / SPACING[2], 1 / SPACING[1]))
        nifti: Any = nibabel.load(tmp_path / f"phantom_{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(nifti.dataobj).T, array)
        assert nifti.get_data_dtype() == array.dtype
        assert nifti.header.get_zooms() == pytest.approx([s / 1000 for s in SPACING[::-1]])
        assert nifti.header.get_xyzt_units()[0] == "mm"
        voxels, header = nrrd.read(str(tmp_path / f"phantom_{name}.nrrd"))
        np.testing.assert_array_equal(voxels.T, array)
        assert np.diag(header["space directions"]) == pytest.approx(SPACING[::-1])
        for ending in (".nii.gz", ".nrrd"):
            itk = SimpleITK.ReadImage(str(tmp_path / f"phantom_{name}{ending}"))
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk), array)
        for ending in (".tif", ".nii.gz", ".nrrd"):
            again = open_source(str(tmp_path / f"phantom_{name}{ending}"))
            assert again.spacing_um_zyx == pytest.approx(SPACING)
            np.testing.assert_array_equal(again.read(Box((0, 0, 0), SHAPE))[0], array)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(f.path for f in files)


def test_what_imagej_cannot_open_is_a_compressed_bigtiff_with_ome_xml(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_files, "MOST_IMAGEJ_BYTES", 700_000)
    mask, objects = labels()
    run(target_of(campaign, str(tmp_path), mask, objects), ("tiff",))
    with tifffile.TiffFile(tmp_path / "phantom_objects.tif") as tif:
        assert tif.is_bigtiff
        assert tif.is_ome
        np.testing.assert_array_equal(tif.asarray(), objects)
        assert tif.asarray().dtype == np.uint32
    assert open_source(str(tmp_path / "phantom_objects.tif")).spacing_um_zyx == pytest.approx(SPACING)
    with tifffile.TiffFile(tmp_path / "phantom_mask.tif") as tif:
        assert tif.is_imagej


@pytest.mark.parametrize(("highest", "dtype"), [(200, "uint8"), (60_000, "uint16"), (70_000, "float32")])
def test_tiffs_of_objects_have_a_type_that_imagej_knows(
    campaign: Campaign, tmp_path: Path, highest: int, dtype: str
) -> None:
    mask, objects = labels(highest)
    run(target_of(campaign, str(tmp_path), mask, objects), ("tiff",))
    read = tifffile.imread(tmp_path / "phantom_objects.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, objects)


def test_classes_have_the_colours_of_the_delivery(campaign: Campaign, tmp_path: Path) -> None:
    run(target_of(campaign, str(tmp_path), labels()[0], None), ("tiff",))
    with tifffile.TiffFile(tmp_path / "phantom_mask.tif") as tif:
        table = tif.pages[0].colormap // 257
    assert table[:, :3].T.tolist() == [[0, 0, 0], *(list(c) for c in class_colours(2))]


def test_files_are_written_once_and_anew_for_other_labels(campaign: Campaign, tmp_path: Path) -> None:
    mask, objects = labels()
    target = target_of(campaign, str(tmp_path), mask, objects)
    first = run(target, ("nrrd",))
    before = {f.path: (tmp_path / f.path).stat().st_mtime_ns for f in first}
    both = run(target, ("nrrd", "nifti"))
    assert both[:2] == first
    assert {f.path: (tmp_path / f.path).stat().st_mtime_ns for f in first} == before
    (tmp_path / first[0].path).write_bytes(b"cut off")
    run(target, ("nrrd",))
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / first[0].path))[0].T, mask)
    target = target_of(campaign, str(tmp_path), 2 - mask, objects)
    run(target, ("nrrd",), "e")
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / first[0].path))[0].T, 2 - mask)


def test_a_kill_leaves_no_file_of_the_name(campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(campaign, str(tmp_path), *labels())

    def dying(path: Path, _: label_files.LabelFile) -> None:
        path.write_bytes(b"part")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_WRITERS", {"tiff": (".tif", dying)})
    with pytest.raises(KeyboardInterrupt):
        run(target, ("tiff",))
    assert [p for p in tmp_path.iterdir() if p.is_file()] == []


def test_a_remote_delivery_has_the_files_too(campaign: Campaign) -> None:
    mask, objects = labels()
    target = target_of(campaign, "memory://export_test", mask, objects)
    files = run(target)
    assert len(files) == 6
    assert all(target.out.storage.fs.size(target.out.storage.path(f.path)) == f.bytes for f in files)


def test_labels_of_a_nifti_lie_on_it(campaign: Campaign, tmp_path: Path) -> None:
    nib: Any = nibabel
    voxels = np.random.default_rng(0).integers(0, 250, (20, 30, 10)).astype(np.uint8)
    affine = np.array([[0, -1e-4, 0, 0.5], [1e-4, 0, 0, -0.25], [0, 0, 2e-4, 1], [0, 0, 0, 1]])  # x and y turned
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "turned.nii")
    import_volume(campaign, VolumeImport(str(tmp_path / "turned.nii"), volume_id="turned"))
    mask = np.ones(campaign.volumes.record("turned").shape_zyx, np.uint8)
    out = tmp_path / "out"
    run(target_of(campaign, str(out), mask, None, "turned"))
    labels_there: Any = nib.load(out / "turned_mask.nii.gz")
    assert labels_there.shape == voxels.shape
    np.testing.assert_allclose(labels_there.affine, affine, atol=1e-9)
    assert nrrd.read_header(str(out / "turned_mask.nrrd"))["space units"] == ["mm"] * 3
    one = SimpleITK.ReadImage(str(out / "turned_mask.nrrd"))
    two = SimpleITK.ReadImage(str(out / "turned_mask.nii.gz"))
    assert one.GetOrigin() == pytest.approx(two.GetOrigin(), abs=1e-6)
    assert one.GetDirection() == pytest.approx(two.GetDirection(), abs=1e-6)


def test_estimates_are_upper_bounds(campaign: Campaign, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 255, SHAPE).astype(np.uint8)
    objects = rng.integers(0, 2**32, SHAPE).astype(np.uint32)
    files = run(target_of(campaign, str(tmp_path), mask, objects))
    bound = bytes_of_delivery(SHAPE, 1, 1, with_objects=True, formats=FORMATS)
    assert sum(f.bytes for f in files) <= bound["files"] < 1.05 * sum(f.bytes for f in files)
    written = sum(p.stat().st_size for p in (tmp_path / "phantom.ome.zarr").rglob("*") if p.is_file())
    assert written <= bound["labels"]
