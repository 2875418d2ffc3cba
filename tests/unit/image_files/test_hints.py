"""What metadata say of microscope, objective and preprocessing is kept with the volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr

from rescueseg.campaign import Campaign
from rescueseg.image_files.hints import of_imagej, of_ome, treatments
from rescueseg.image_files.registry import open_source
from rescueseg.records import VolumeRecord
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume

VOXELS = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Instrument ID="Instrument:0"><Microscope Manufacturer="Zeiss" Model="LSM 880"/>
<Objective ID="Objective:0" Manufacturer="Zeiss" Model="Plan-Apochromat" NominalMagnification="63" LensNA="1.4"
 Immersion="Oil"/></Instrument>
<Image ID="Image:0"><Description>deconvolved with Huygens</Description></Image></OME>"""


def test_ome_names_microscope_and_objective() -> None:
    assert of_ome(OME) == {
        "microscope": "Zeiss LSM 880",
        "objective": "Zeiss Plan-Apochromat 63× NA 1.4 Oil",
        "description": "deconvolved with Huygens",
    }
    assert of_ome("no xml") == {}
    assert of_ome("<OME/>") == {}


def test_imagej_info_is_searched_for_keys() -> None:
    info = "Microscope Model = SP8\nObjective Name = HC PL APO 40x\nSizeZ = 12\n"
    assert of_imagej({"Info": info}) == {"microscope": "SP8", "objective": "HC PL APO 40x"}
    assert of_imagej({"Info": "just a note", "unit": "um"}) == {"description": "just a note"}
    assert of_imagej({}) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mouse_BM4D_denoised.tif", "denoised"),
        ("stack_decon.nii.gz", "deconvolved"),
        ("vol-N2V-CLAHE.tif", "denoised, contrast changed"),
        ("raw.tif", ""),
        ("decoration_carefully_imaged.tif", ""),
    ],
)
def test_treatments_are_read_from_names(name: str, expected: str) -> None:
    assert treatments(name) == expected


def nifti(path: Path) -> str:
    image: Any = nibabel.Nifti1Image(VOXELS.T, np.eye(4))
    image.header["descrip"] = b"confocal, smoothed"
    nibabel.save(image, path / "a.nii")
    return str(path / "a.nii")


def nrrd_file(path: Path) -> str:
    nrrd.write(str(path / "a.nrrd"), VOXELS.T, {"microscope": "SPIM"}, custom_field_map={"microscope": "string"})
    return str(path / "a.nrrd")


def hdf5(path: Path) -> str:
    with h5py.File(path / "a.h5", "w") as file:
        file["raw"] = VOXELS
        file["raw"].attrs["objective"] = "25x water"
        file["raw"].attrs["array"] = np.arange(3)
    return f"{path / 'a.h5'}:raw"


def zarr_array(path: Path) -> str:
    array = zarr.create_array(path / "a.zarr", shape=VOXELS.shape, dtype=VOXELS.dtype)
    array[:] = VOXELS
    array.attrs["microscope"] = "lattice"
    return str(path / "a.zarr")


def ome_tiff(path: Path) -> str:
    meta = {"axes": "ZYX", "Description": "denoised"}
    tifffile.imwrite(path / "a.ome.tif", VOXELS, metadata=meta)
    return str(path / "a.ome.tif")


def imagej(path: Path) -> str:
    tifffile.imwrite(path / "a.tif", VOXELS, imagej=True, metadata={"axes": "ZYX", "Info": "Lens = 20x air"})
    return str(path / "a.tif")


@pytest.mark.parametrize(
    ("writer", "expected"),
    [
        (nifti, {"description": "confocal, smoothed"}),
        (nrrd_file, {"microscope": "SPIM"}),
        (hdf5, {"objective": "25x water"}),
        (zarr_array, {"microscope": "lattice"}),
        (ome_tiff, {"description": "denoised"}),
        (imagej, {"objective": "20x air"}),
    ],
)
def test_every_format_gives_its_hints(tmp_path: Path, writer: Any, expected: dict[str, str]) -> None:
    source = open_source(writer(tmp_path))
    assert source.hints == expected
    source.close()


def test_the_import_keeps_them_and_the_name_of_the_file(tmp_path: Path, campaign: Campaign) -> None:
    tifffile.imwrite(tmp_path / "x_denoised.tif", VOXELS, imagej=True, metadata={"axes": "ZYX", "Info": "Lens = 20x"})
    record = import_volume(campaign, VolumeImport(str(tmp_path / "x_denoised.tif"), spacing=(1, 1, 1)))
    assert record.hints == {"objective": "20x", "preprocessing": "denoised"}
    assert campaign.volumes.record(record.volume_id) == record


def test_records_from_before_still_load(campaign: Campaign, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS, metadata={"axes": "ZYX"})
    record = import_volume(campaign, VolumeImport(str(tmp_path / "a.tif"), spacing=(1, 1, 1)))
    old = {key: value for key, value in record.to_json().items() if key not in ("hints", "refused")}
    assert VolumeRecord.model_validate(old) == record
