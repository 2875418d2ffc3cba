"""CZI, LIF and MRC as their packages or the test writes them; SimpleITK reads MRC too. They need the extra ``formats``."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from rescueseg.errors import RescuesegError, UnreadableVolumeError
from rescueseg.geometry import Box
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.source import Source, Statement

Array = npt.NDArray[Any]
VOXELS = np.random.default_rng(1).integers(1, 4000, (2, 5, 24, 32)).astype(np.uint16)
BOX = Box((1, 3, 4), (3, 10, 20))


def needs(package: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} of the extra 'formats' is not installed")


def all_of(source: Source) -> Array:
    return source.read(Box((0, 0, 0), source.shape_zyx))


@pytest.mark.parametrize("name", ["a.czi", "a.lif", "a.nd2", "a.mrc", "a.REC", "a.mrc.gz"])
def test_without_the_extra_one_line_names_it(name: str, tmp_path: Path) -> None:
    package = {"czi": "pylibCZIrw", "lif": "liffile", "nd2": "nd2"}.get(name.rsplit(".", 1)[-1], "mrcfile")
    if importlib.util.find_spec(package) is not None:
        pytest.skip("the extra 'formats' is installed")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        UnreadableVolumeError, match=r"is read by the extra 'formats'.*pip install 'rescueseg\[formats\]'"
    ):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.vsi", "a.dm4", "a.oib"])
def test_other_makers_are_told_what_to_save(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnreadableVolumeError, match="OME-TIFF or OME-Zarr"):
        open_source(str(tmp_path / name))


# CZI -----------------------------------------------------------------------------------------------------------------


def czi(folder: Path, data: Array = VOXELS, scenes: int = 1, times: int = 1, **scale: float) -> str:
    """Write c z y x, or c z y x colour, with another value added in each scene and time point."""
    from pylibCZIrw.czi import create_czi

    with create_czi(str(folder / "a.czi")) as file:
        for scene in range(scenes):
            for t in range(times):
                for c, z in np.ndindex(data.shape[:2]):
                    plane = data[c, z] + data.dtype.type(scene + t)
                    plane = plane[..., None] if plane.ndim == 2 else plane[..., ::-1]
                    file.write(
                        np.ascontiguousarray(plane), plane={"C": c, "Z": z, "T": t}, location=(100 * scene, 50 * scene),
                        **({"scene": scene} if scenes > 1 else {}),
                    )  # fmt: skip
        names = {c: f"dye {c}" for c in range(len(data))}
        file.write_metadata("a", channel_names=names, **scale)
    return str(folder / "a.czi")


SCALE = {"scale_x": 0.1e-6, "scale_y": 0.12e-6, "scale_z": 0.3e-6}


@needs("pylibCZIrw")
@pytest.mark.parametrize("data", [VOXELS, VOXELS[:1], VOXELS.astype(np.uint8), VOXELS.astype(np.float32)])
def test_czi_is_read_box_by_box(data: Array, tmp_path: Path) -> None:
    source = open_source(czi(tmp_path, data, **SCALE))
    np.testing.assert_array_equal(all_of(source), data)
    np.testing.assert_array_equal(source.read(BOX), data[(slice(None), *BOX.slices)])
    assert source.dtype == data.dtype
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1))
    assert source.hints["description"].startswith("channels dye 0")
    source.close()


@needs("pylibCZIrw")
def test_czi_in_colour_has_red_green_blue_channels(tmp_path: Path) -> None:
    colour = np.random.default_rng(2).integers(0, 255, (1, 5, 24, 32, 3)).astype(np.uint8)
    with pytest.raises(RescuesegError, match="axes"):
        open_source(czi(tmp_path, np.concatenate([colour, colour]), **SCALE))
    (tmp_path / "a.czi").unlink()
    source = open_source(czi(tmp_path, colour, **SCALE))
    np.testing.assert_array_equal(all_of(source), np.moveaxis(colour[0], -1, 0))


@needs("pylibCZIrw")
def test_a_scene_of_a_czi_is_chosen_by_its_number(tmp_path: Path) -> None:
    path = czi(tmp_path, scenes=3, **SCALE)
    with pytest.raises(RescuesegError, match=r"3 images: 0 scene 0; 1 scene 1; 2 scene 2.*--series, 0 to 2"):
        open_source(path)
    for number in range(3):
        np.testing.assert_array_equal(all_of(open_source(path, Statement(series=number))), VOXELS + number)


@needs("pylibCZIrw")
def test_czi_without_depth_scale_or_with_time(tmp_path: Path) -> None:
    source = open_source(czi(tmp_path, scale_x=0.1e-6, scale_y=0.12e-6))
    assert source.spacing_um_zyx is None
    assert "? × 0.12 × 0.1 µm" in source.spacing_note
    source.close()
    (tmp_path / "a.czi").unlink()
    with pytest.raises(RescuesegError, match="2 time points"):
        open_source(czi(tmp_path, times=2, **SCALE))


# LIF -----------------------------------------------------------------------------------------------------------------


def lif(folder: Path, images: dict[str, tuple[Array, str, dict[str, float]]]) -> str:
    """Write Leica's container: an XML header in UTF-16, then one block of bytes per image.

    `images` holds by name the voxels, a letter per axis (c, or one of Leica's dimensions) and lengths in metre.
    """
    numbers = {"x": 1, "y": 2, "z": 3, "t": 4, "λ": 5, "m": 10}
    elements, blocks = "", []
    for index, (name, (data, axes, lengths)) in enumerate(images.items()):
        strides = dict(zip(axes, data.strides, strict=True))
        count = dict(zip(axes, data.shape, strict=True))
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" '
            f'LUTName="Dye{c}" IsLUTInverted="0" BytesInc="{c * strides.get("c", 0)}" BitInc="0"/>'
            for c in range(count.get("c", 1))
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{numbers[a]}" NumberOfElements="{count[a]}" Origin="0" Length="{lengths.get(a, 1)}" '
            f'Unit="{"m" if a in "xyz" else ""}" BitInc="0" BytesInc="{strides[a]}"/>'
            for a in sorted(set(axes) - {"c"}, key=lambda a: strides[a])
        )
        elements += (
            f'<Element Name="{name}" Visibility="1" UniqueID="{index}"><Data><Image><ImageDescription>'
            f"<Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{data.nbytes}" MemoryBlockID="MemBlock_{index}"/></Element>'
        )
        blocks.append((f"MemBlock_{index}", data.tobytes()))
    xml = (
        f'<LMSDataContainerHeader Version="2"><Element Name="a" Visibility="1"><Data/><Memory Size="0" MemoryBlockID="MemBlock_r"/>'
        f"<Children>{elements}</Children></Element></LMSDataContainerHeader>"
    )
    text = xml.encode("utf-16-le")
    content = struct.pack("<II B I", 0x70, len(text) + 5, 0x2A, len(xml)) + text
    for name, block in blocks:
        label = name.encode("utf-16-le")
        content += struct.pack("<II B Q B I", 0x70, len(label) + 14, 0x2A, len(block), 0x2A, len(name)) + label + block
    (folder / "a.lif").write_bytes(content)
    return str(folder / "a.lif")


LENGTHS = {"z": 0.3e-6 * 4, "y": 0.12e-6 * 23, "x": 0.1e-6 * 31}


@needs("liffile")
@pytest.mark.parametrize("axes", ["czyx", "zcyx", "yczx"])
def test_lif_is_read_box_by_box(axes: str, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(VOXELS.transpose(["czyx".index(a) for a in axes]))
    source = open_source(lif(tmp_path, {"stack": (stored, axes, LENGTHS)}))
    np.testing.assert_array_equal(all_of(source), VOXELS)
    np.testing.assert_array_equal(source.read(BOX), VOXELS[(slice(None), *BOX.slices)])
    assert source.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1))
    assert source.hints == {"description": "channels Dye0, Dye1"}
    source.close()


@needs("liffile")
def test_an_image_of_a_lif_is_chosen_and_what_is_no_volume_refused(tmp_path: Path) -> None:
    path = lif(
        tmp_path,
        {
            "stack": (VOXELS[0], "zyx", LENGTHS),
            "wavelengths": (VOXELS, "λzyx", LENGTHS),
            "time": (VOXELS, "tzyx", LENGTHS),
            "tiles": (VOXELS, "mzyx", LENGTHS),
            "plane": (VOXELS[0, 0], "yx", LENGTHS),
            "downwards": (VOXELS[1], "zyx", LENGTHS | {"z": -LENGTHS["z"]}),
        },
    )
    with pytest.raises(RescuesegError, match="6 images: 0 stack; 1 wavelengths; 2 time"):
        open_source(path)
    np.testing.assert_array_equal(all_of(open_source(path, Statement(series=0)))[0], VOXELS[0])
    for series, message in (
        (1, "2 entries along axis 'λ'"),
        (2, "2 time points"),
        (3, "2 positions.*--position"),
        (4, "not a 3D image"),
    ):
        with pytest.raises(RescuesegError, match=message):
            open_source(path, Statement(series=series))
    np.testing.assert_array_equal(all_of(open_source(path, Statement(series=3, position=1)))[0], VOXELS[1])
    down = open_source(path, Statement(series=5))
    assert down.spacing_um_zyx == pytest.approx((0.3, 0.12, 0.1))
    assert any("downwards" in remark for remark in down.remarks)


# MRC -----------------------------------------------------------------------------------------------------------------


def mrc(folder: Path, data: Array, name: str = "a.mrc", voxel: Any = (10.0, 12.0, 30.0), order: Any = (1, 2, 3)) -> str:
    import mrcfile

    opener = {"compression": "gzip"} if name.endswith("gz") else {}
    with mrcfile.new(str(folder / name), data, overwrite=True, **opener) as file:
        if voxel is not None:
            file.voxel_size = voxel
        file.set_volume()
        file.header.mapc, file.header.mapr, file.header.maps = order
    return str(folder / name)


SIGNED = (VOXELS[0].astype(np.int32) - 2000).astype(np.int16)


@needs("mrcfile")
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (SIGNED, "a.mrc"),
        (VOXELS[0], "a.rec"),
        (SIGNED.astype(np.float32) / 7, "a.map"),
        (SIGNED, "a.mrc.gz"),
        ((SIGNED % 100).astype(np.int8), "a.st"),
    ],
)
def test_mrc_is_what_other_readers_read(data: Array, name: str, tmp_path: Path) -> None:
    path = mrc(tmp_path, data, name)
    source = open_source(path)
    np.testing.assert_array_equal(all_of(source)[0], data)
    if not name.endswith("gz"):
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("MRCImageIO")
        reader.SetFileName(path)
        judge = reader.Execute()
        if data.dtype != np.int8:  # SimpleITK takes bytes for unsigned
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(judge), data)
        assert source.spacing_um_zyx == pytest.approx([s * 1e-4 for s in judge.GetSpacing()[::-1]], rel=1e-5)
    assert source.spacing_um_zyx == pytest.approx((0.003, 0.0012, 0.001), rel=1e-5)
    source.close()


@needs("mrcfile")
def test_mrc_with_turned_axes_unset_size_and_imod_bytes(tmp_path: Path) -> None:
    turned = open_source(mrc(tmp_path, np.ascontiguousarray(SIGNED.transpose(2, 1, 0)), order=(3, 2, 1)))
    np.testing.assert_array_equal(all_of(turned)[0], SIGNED)
    unset = open_source(mrc(tmp_path, SIGNED, "b.mrc", voxel=(0.0, 0.0, 0.0)))
    assert unset.spacing_um_zyx is None
    one = open_source(mrc(tmp_path, SIGNED, "c.mrc", voxel=(1.0, 1.0, 1.0)))
    assert any("1 Å" in remark for remark in one.remarks)
    data = (SIGNED % 256).astype(np.uint8)
    path = Path(mrc(tmp_path, data.view(np.int8), "d.mrc"))
    content = bytearray(path.read_bytes())
    content[152:160] = struct.pack("<ii", 1146047817, 0)
    path.write_bytes(content)
    source = open_source(str(path))
    np.testing.assert_array_equal(all_of(source)[0], data)
    assert any("unsigned" in remark for remark in source.remarks)
