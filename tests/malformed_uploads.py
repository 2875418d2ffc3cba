"""Uploads that are none: damaged, hostile, or the labels of something else."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np

from rescueseg.annotation.formats.space import affine_mm
from tests.annotation_server import BOX, SPACING

MULTIPART = "multipart/form-data; boundary=edge"
RAW = "application/octet-stream"
AFFINE = affine_mm(SPACING, BOX.offset_zyx)
LABELS = (np.arange(BOX.size).reshape(BOX.shape_zyx) % 2).astype(np.uint8)
BOMB_BYTES = 2**28


@dataclass(frozen=True)
class Upload:
    """A request's body, and what is wrong with it."""

    fault: str
    body: bytes
    content_type: str = RAW


def nifti(labels: np.ndarray[Any, Any] = LABELS, affine: np.ndarray[Any, Any] = AFFINE) -> bytes:
    return bytes(nibabel.Nifti1Image(labels.T, affine).to_bytes())


def nifti2(affine: np.ndarray[Any, Any] = AFFINE) -> bytes:
    return bytes(nibabel.Nifti2Image(LABELS.T, affine).to_bytes())


def in_unit(unit: str) -> bytes:
    """Return the labels, their millimetres said to be another unit."""
    image = nibabel.Nifti1Image(LABELS.T, AFFINE)
    image.header.set_xyzt_units(unit)
    return bytes(image.to_bytes())


def npy(labels: np.ndarray[Any, Any] = LABELS) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, labels)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def form(name: str, data: bytes, filename: str = "labels.nii.gz") -> bytes:
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + data + b"\r\n--edge--\r\n"


def _damaged(rng: np.random.Generator) -> Iterator[Upload]:
    """Files cut short or with a flipped bit."""
    whole, packed = gzip.compress(nifti(), mtime=0), zipped({"classes.npy": npy()})
    for cut in rng.choice(len(whole), 60, replace=False):
        yield Upload(f"gzip cut after {cut} bytes", whole[:cut])
    for cut in range(0, 352 + LABELS.size, 8):
        yield Upload(f"NIfTI cut after {cut} bytes", nifti()[:cut])
    for cut in rng.choice(len(packed), 40, replace=False):
        yield Upload(f"npz cut after {cut} bytes", packed[:cut])
    for bit in rng.choice(np.arange(80, 8 * len(whole)), 60, replace=False):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        yield Upload(f"gzip with bit {bit} flipped", bytes(flipped))


def _elsewhere(rng: np.random.Generator) -> Iterator[Upload]:
    """Labels of another place or grid."""
    for axis in range(3):
        for voxels in (-100, -3, -1, -0.5, 0.5, 1, 2, 7, 1e6):
            moved = AFFINE.copy()
            moved[axis, 3] += voxels * AFFINE[axis, axis]
            yield Upload(f"moved by {voxels} voxels along axis {axis}", nifti(affine=moved))
        for factor in (0.001, 0.5, 1.1, 2, 1000, np.nan, np.inf, 0.0):
            scaled = AFFINE.copy()
            scaled[axis, axis] *= factor
            yield Upload(f"voxels {factor} times as long along axis {axis}", _with_sform(scaled))
    for unit in ("micron", "meter"):
        yield Upload(f"millimetres called {unit}", in_unit(unit))
    for factor in (1 / 1000, 1000):
        yield Upload(f"NIfTI-2, {factor} times as long", nifti2(np.diag([factor, factor, factor, 1]) @ AFFINE))
    for _ in range(20):
        turned = AFFINE.copy()
        turned[:3, :3] += rng.normal(scale=1e-4, size=(3, 3))
        yield Upload("sheared", nifti(affine=turned))
    for shape in [(3, 4, 6), (4, 4, 5), (1, 1, 1), (3, 4), (6, 8, 10), (3, 4, 5, 2), (60, 1, 1), (2, 3, 4)]:
        yield Upload(f"of shape {shape}", nifti(np.zeros(shape, np.uint8)))
        yield Upload(f"npz of shape {shape}", zipped({"classes.npy": npy(np.zeros(shape, np.uint8))}))
    other = affine_mm(SPACING, (5, 0, 0))
    yield Upload("the other ticket's labels", nifti(np.zeros((2, 3, 4), np.uint8), other))
    yield Upload("another patch of this shape", nifti(affine=other))


def _with_sform(affine: np.ndarray[Any, Any]) -> bytes:
    """Return a NIfTI with an affine that nibabel would refuse to write."""
    data = bytearray(nifti())
    struct.pack_into("<hh", data, 252, 0, 1)
    struct.pack_into("<12f", data, 280, *np.asarray(affine, np.float32)[:3].ravel())
    return bytes(data)


def _values(_rng: np.random.Generator) -> Iterator[Upload]:
    """Voxels that are no classes."""
    for value in (0.5, 1.0001, np.nan, np.inf, -np.inf, 1e30, -1.0):
        for dtype in (np.float32, np.float64):
            odd = LABELS.astype(dtype)
            odd[1, 1, 1] = value
            yield Upload(f"{dtype.__name__} {value}", nifti(odd))
            yield Upload(f"npz of {dtype.__name__} {value}", zipped({"classes.npy": npy(odd)}))
    for value, kind in ((2, np.uint8), (254, np.uint8), (-1, np.int16), (256, np.int16), (2**31 - 1, np.int32)):
        odd = LABELS.astype(kind)
        odd[0, 0, 0] = value
        yield Upload(f"class {value}", nifti(odd))
    yield Upload("nothing annotated", nifti(np.full(BOX.shape_zyx, 255, np.uint8)))
    yield Upload("complex", nifti(LABELS.astype(np.complex64)))
    for kind in ("c16", "M8[s]", "m8[s]", "S3", "U2", "V4"):
        yield Upload(f"npz of {kind}", zipped({"classes.npy": npy(np.zeros(BOX.shape_zyx, kind))}))


def _headers(rng: np.random.Generator) -> Iterator[Upload]:
    """NIfTI headers that say what is not so."""
    fields: list[tuple[int, str, tuple[float, ...]]] = [
        (40, "<h", (0, -1, 1, 2, 8, 100, 32767, -32768)),
        (42, "<h", (0, -1, 1, 6, 32767, -5)),
        (44, "<h", (0, -1, 32767)),
        (46, "<h", (0, -1, 32767, 4)),
        (70, "<h", (0, 1, 3, 1792, 2048, 32, 128, -1, 9999)),
        (108, "<f", (0.0, 1.0, 351.0, -352.0, 1e9, 1e38, float("nan"), float("inf"), 70000.0)),
        (344, "<4s", ()),
    ]
    for offset, kind, values in fields:
        for value in values:
            data = bytearray(nifti())
            struct.pack_into(kind, data, offset, int(value) if kind == "<h" else value)
            yield Upload(f"header byte {offset}: {value}", bytes(data))
    second: list[tuple[int, str, tuple[int, ...]]] = [
        (4, "<i", (0, 0x2B316E)),
        (12, "<h", (0, 128, 1792, -1)),
        (16, "<q", (0, -1, 2, 8, 2**63 - 1)),
        (24, "<q", (0, -1, 6, 2**62)),
        (168, "<q", (0, 352, -544, 2**40, 2**63 - 1)),
        (500, "<i", (4, 7, 255)),
    ]
    for offset, kind, values in second:
        for value in values:
            data = bytearray(nifti2())
            struct.pack_into(kind, data, offset, value)
            yield Upload(f"NIfTI-2, header byte {offset}: {value}", bytes(data))
    for cut in range(0, 544 + LABELS.size, 16):
        yield Upload(f"NIfTI-2 cut after {cut} bytes", nifti2()[:cut])
    for magic in (b"n+2\0", b"ni1\0", b"\0\0\0\0", b"n+1"[::-1] + b"\0"):
        data = bytearray(nifti())
        data[344:348] = magic
        yield Upload(f"magic {magic!r}", bytes(data))
    for _ in range(40):
        yield Upload("noise behind a gzip's head", b"\x1f\x8b\x08\0" + rng.bytes(int(rng.integers(1, 400))))
    huge = bytearray(nifti())
    struct.pack_into("<8h", huge, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    yield Upload("35 trillion voxels", bytes(huge))
    yield Upload("35 trillion voxels, gzipped", gzip.compress(bytes(huge)))
    extended = bytearray(nifti())
    struct.pack_into("<f", extended, 108, 368.0)
    extended[348:352] = b"\1\0\0\0"
    for size in (-16, 0, 2**31 - 1, 7):
        yield Upload(
            f"an extension of {size} bytes", bytes(extended[:352]) + struct.pack("<ii", size, 6) + bytes(extended[352:])
        )


def _no_image(rng: np.random.Generator) -> Iterator[Upload]:
    known = [b"", b"\0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"<html></html>", b'{"labels": 1}', b"PK\x03\x04", b"\x1f\x8b"]
    known += [
        b"GIF89a",
        b"%PDF-1.7",
        b"\x89HDF\r\n\x1a\n",
        b"NRRD0004\n",
        b"\x7fELF",
        b"n+1\0",
        pickle.dumps(LABELS),
        npy(),
    ]
    for head in known:
        yield Upload(f"starts with {head[:8]!r}", head)
        yield Upload(f"starts with {head[:8]!r}, then noise", head + rng.bytes(500))
        yield Upload(f"{head[:8]!r}, gzipped", gzip.compress(head))
    yield Upload("zeros", bytes(1000))
    yield Upload("an empty zip", zipped({}))


class _Runs:
    """Would make a folder if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").mkdir, ("/tmp/rescueseg-unpickled",)


def _zip_tricks(_rng: np.random.Generator) -> Iterator[Upload]:
    good = npy()
    names = ["../classes.npy", "/etc/passwd", "classes.npy/", "classes", "a\\b.npy", "con.npy", "é" * 300 + ".npy"]
    for name in names:
        yield Upload(f"a member called {name[:20]}", zipped({name: good, "other.npy": good}))
    yield Upload("classes twice over", zipped({"classes.npy": good, "classes": good}))
    yield Upload("unknown arrays", zipped({"classes.npy": good, "extra.npy": good}))
    yield Upload("instances alone beside noise", zipped({"a.npy": good, "b.npy": good}))
    yield Upload("10,000 members", zipped({f"{i}.npy": b"" for i in range(10_000)}))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Upload(f"compression {method}", zipped({"classes.npy": good}, method))
    odd = np.empty(BOX.shape_zyx, object)
    odd.fill(_Runs())
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, odd, allow_pickle=True)
    yield Upload("pickled objects", zipped({"classes.npy": buffer.getvalue()}))
    yield Upload("a pickle", zipped({"classes.npy": pickle.dumps(_Runs())}))
    yield Upload("a zip in a zip", zipped({"classes.npy": zipped({"classes.npy": good})}))
    heads = [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 100000)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 5)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 5.0)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4, 5)}",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3, 4, 5)}",
        "{'descr': '|u1', 'fortran_order': 2, 'shape': (3, 4, 5)}",
        "{'descr': '|u1', 'shape': (3, 4, 5)}",
        "__import__('os').mkdir('/tmp/rescueseg-evaluated')",
        "(" * 400,
        "-" * 400 + "1",
        "{" * 200 + "}" * 200,
        "9" * 480,
        "\0\0",
        "",
    ]
    for head in heads:
        raw = head.encode() + b"\n"
        yield Upload(f"npy head {head[:40]}", zipped({"classes.npy": b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + bytes(60)}))  # fmt: skip
    yield Upload("a huge npy head", zipped({"classes.npy": b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + bytes(10**6)}))
    yield Upload("npy version 9", zipped({"classes.npy": b"\x93NUMPY\x09\0" + good[8:]}))
    yield Upload("voxels missing", zipped({"classes.npy": good[:-1]}))
    yield Upload("voxels to spare", zipped({"classes.npy": good + b"\0"}))
    plain = zipped({"classes.npy": good}, zipfile.ZIP_STORED)
    middle = plain.index(b"PK\x01\x02")
    for offset, size in ((16, 4), (20, 4), (24, 4), (8, 2), (10, 2), (42, 4)):
        for value in (1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)):
            lying = bytearray(plain)
            lying[middle + offset : middle + offset + size] = value.to_bytes(size, "little")
            if not (offset == 8 and value == 1 << 15):  # a reserved flag
                yield Upload(f"directory entry, byte {offset}: {value}", bytes(lying))


def _bombs(_rng: np.random.Generator) -> Iterator[Upload]:
    """Little that inflates to much."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = deflate.compress(nifti())
    zeros = b"".join(deflate.compress(bytes(2**20)) for _ in range(BOMB_BYTES // 2**20)) + deflate.flush()
    bomb = head + zeros
    yield Upload("a gzip of 256 MiB", bomb)
    yield Upload("a gzip of 256 MiB in a form", form("labels", bomb), MULTIPART)
    yield Upload("a gzip in a gzip", gzip.compress(bomb))
    block = bytes(BOMB_BYTES)
    yield Upload("an npz of 256 MiB behind a small head", zipped({"classes.npy": npy() + block}))
    raw = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({BOMB_BYTES},)}}\n".encode()
    honest = b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw
    yield Upload("an npz of 256 MiB", zipped({"classes.npy": honest + block}))


def _forms(rng: np.random.Generator) -> Iterator[Upload]:
    good = nifti()
    for name in ("", "file", "label", "labels ", "Labels", "../labels", "ignore", "labels\0"):
        yield Upload(f"a field called {name!r}", form(name, good), MULTIPART)
    for filename in ("../../campaign.toml", "/etc/passwd", "C:\\labels.nii", "a" * 5000, ""):
        yield Upload(f"a bad file called {filename[:20]!r}", form("labels", b"no image", filename), MULTIPART)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other"):
        yield Upload(f"a form of type {kind}", form("labels", good), kind)
    whole = form("labels", good)
    for cut in rng.choice(len(whole) - 20, 20, replace=False):
        yield Upload(f"form cut after {cut} bytes", whole[:cut], MULTIPART)
    two = form("labels", good).removesuffix(b"--edge--\r\n") + form("ignore", good)
    yield Upload("a mask of ignore beside classes", two, MULTIPART)
    many = b"".join(form(f"f{i}", b"x").removesuffix(b"--edge--\r\n") for i in range(500)) + b"--edge--\r\n"
    yield Upload("500 files", many, MULTIPART)
    yield Upload("a text field", b'--edge\r\nContent-Disposition: form-data; name="labels"\r\n\r\nx\r\n--edge--\r\n', MULTIPART)  # fmt: skip
    yield Upload("more than the patch can hold", bytes(3 * 2**20))
    yield Upload("more than the patch can hold, as a form", form("labels", bytes(3 * 2**20)), MULTIPART)


def malformed(seed: int) -> Iterator[Upload]:
    """Yield them all."""
    rng = np.random.default_rng(seed)
    for make in (_damaged, _elsewhere, _values, _headers, _no_image, _zip_tricks, _bombs, _forms):
        yield from make(rng)
