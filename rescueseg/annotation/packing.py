"""Arrays as npz for HTTP. Reading is bounded: nothing is unpickled, and no array is larger than its header says."""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.client import PatchView
from rescueseg.errors import LabelError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.queue.records import TicketRecord

_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LENGTHS = {b"\x93NUMPY\1\0": 2, b"\x93NUMPY\2\0": 4}
"""Bytes of the header's length by what an npy file begins with."""
_HEAD_BYTES = 512
_HEAD = re.compile(
    rb"\{'descr': '([<>|=]?(?:b1|[iu][1248]|f[248]))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}, ?)*(?:\d{1,12})?)\),? *\}\s*"
)
"""An npy header of plain numbers: nothing of it is evaluated."""
_MEMBERS = 16
DAMAGE_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What parsers raise on files that somebody damaged, by accident or not."""
_ABOUT = "about"
_NOISY = 2
"""Arrays of items this large or larger are images and floats, which deflate slowly and to little gain."""


def pack(arrays: Mapping[str, npt.NDArray[Any]], about: Any = None) -> bytes:
    """Return arrays as npz, with a JSON-ready description beside them unless it is None."""
    contents = dict(arrays)
    if about is not None:
        contents[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in contents.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_STORED if array.itemsize >= _NOISY else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack(file: IO[bytes], limit: int) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Read what `pack` or `numpy.savez` wrote.

    Parameters
    ----------
    file : binary file
        The npz, seekable.
    limit : int
        Bytes that all arrays may take together.

    Returns
    -------
    arrays : dict of ndarray
        By name.
    about : object
        The description beside them; None without one.

    Raises
    ------
    LabelError
        If it is no npz, damaged, larger than `limit`, or holds anything but plain numbers.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > _MEMBERS:
                raise ValueError(f"it holds {len(members)} arrays")
            if sum(member.compress_size for member in members) > file.seek(0, io.SEEK_END):
                raise ValueError("its directory does not fit it")
            arrays: dict[str, npt.NDArray[Any]] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or name == member.filename or member.compress_type not in _PLAIN:
                    raise ValueError(f"its member {member.filename[:40]!r} is no array of its own")
                arrays[name] = _read_member(archive, member, limit - sum(a.nbytes for a in arrays.values()))
            about = arrays.pop(_ABOUT, None)
            return arrays, None if about is None else json.loads(about.tobytes())
    except DAMAGE_ERRORS as error:
        todo = "Save the labels again with numpy.savez"
        raise LabelError(f"the npz cannot be read: {brief(error)}", todo=todo) from error


def brief(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class.

    Examples
    --------
    >>> brief(ValueError("the header is cut short\nat byte 12")), brief(EOFError())
    ('the header is cut short', 'EOFError')
    """
    return next(iter(str(error).splitlines()), "")[:160] or type(error).__name__


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: int) -> npt.NDArray[Any]:
    """Read one array; its size is known from its header before anything of it is inflated."""
    with archive.open(member) as file:
        magic = file.read(8)
        length = file.read(_LENGTHS.get(magic, 0))
        size = int.from_bytes(length, "little")
        head = _HEAD.fullmatch(file.read(size)) if length and size <= _HEAD_BYTES else None
        if head is None:
            raise ValueError("it holds something else than an array of numbers")
        dtype, fortran = np.dtype(head[1].decode()), head[2] == b"True"
        shape = tuple(int(n) for n in head[3].decode().replace(",", " ").split())
        expected = math.prod(shape) * dtype.itemsize
        if expected > room:
            raise ValueError(f"an array of shape {shape} and type {dtype.str} is larger than its patch allows")
        if member.file_size != len(magic) + len(length) + size + expected:
            raise ValueError("an array is shorter or longer than its header says")
        data = file.read(expected + 1)
        if len(data) != expected:
            raise ValueError("an array is shorter or longer than its header says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def pack_labels(labels: PatchLabels) -> bytes:
    """Return labels as npz: `classes`, and `instances` where objects are numbered."""
    arrays: dict[str, npt.NDArray[Any]] = {"classes": labels.classes}
    return pack(arrays if labels.instances is None else {**arrays, "instances": labels.instances})


def labels_of(arrays: Mapping[str, npt.NDArray[Any]], kind: str, what: str = "npz") -> PatchLabels:
    """Return labels from arrays by name.

    Parameters
    ----------
    arrays : mapping of ndarray
        `classes` with `instances` where objects are numbered; or, of one array with any name, classes or, in a campaign
        of instances, object numbers (then with an `ignore` mask, if there is one).
    kind : {"semantic", "instance"}
        What the campaign annotates.
    what : str
        Where they come from, for the error message.

    Raises
    ------
    LabelError
        If the names do not tell which is which.

    Examples
    --------
    One array alone holds object numbers where the campaign annotates instances, else classes:

    >>> array = np.array([[[0, 3, 3]]], np.uint8)
    >>> labels_of({"mask": array}, "semantic").classes.tolist()
    [[[0, 3, 3]]]
    >>> labels_of({"mask": array}, "instance").classes.tolist()
    [[[0, 1, 1]]]
    """
    rest = {name: array for name, array in arrays.items() if name != "ignore"}
    if "classes" in rest and len(rest) == len(arrays) and set(rest) <= {"classes", "instances"}:
        return PatchLabels(rest["classes"], rest.get("instances"))
    if len(rest) != 1 or (kind == "semantic" and len(arrays) != 1):
        raise LabelError(
            f"it holds the arrays {', '.join(sorted(arrays))[:100] or 'none'}",
            where=what,
            todo="Hand in 'classes', with 'instances' where objects are numbered",
        )
    only = next(iter(rest.values()))
    return PatchLabels(only) if kind == "semantic" else _object_labels(only, arrays.get("ignore"), what)


def _object_labels(ids: npt.NDArray[Any], ignore: npt.NDArray[Any] | None, what: str) -> PatchLabels:
    """Return labels from object numbers, which some tools save as floats."""
    if ids.size and not (ids.min() >= 0 and ids.max() < 2**32 and np.array_equal(ids, np.rint(ids))):
        raise LabelError("object numbers must be whole, from 0 to 2³² - 1", where=what, todo="Save them as integers")
    if ignore is not None and ignore.shape != ids.shape:
        raise LabelError("the ignore mask has another shape than the labels", where=what, todo="Save both again")
    return PatchLabels.of_instances(ids, None if ignore is None else ignore != 0)


def unpack_labels(file: IO[bytes], voxels: int, kind: str = "semantic") -> PatchLabels:
    """Read labels of a patch of so many voxels from npz; see `labels_of`."""
    return labels_of(unpack(file, voxels * 9)[0], kind)


def pack_view(view: PatchView) -> bytes:
    """Return a patch with what surrounds it as npz."""
    arrays = {
        "image": view.image,
        "classes": view.start.classes,
        "instances": view.start.instances,
        "prediction": view.prediction,
        "uncertainty": view.uncertainty,
    }
    about = {
        "ticket": view.ticket.to_json(),
        "context": view.context.to_dict(),
        "spacing_um_zyx": list(view.spacing_um_zyx),
        "start": view.start.digest,
    }
    return pack({name: array for name, array in arrays.items() if array is not None}, about)


def unpack_view(file: IO[bytes], limit: int) -> PatchView:
    """Read what `pack_view` wrote."""
    arrays, about = unpack(file, limit)
    z, y, x = about["spacing_um_zyx"]
    return PatchView(
        TicketRecord.model_validate(about["ticket"]),
        Box.from_dict(about["context"]),
        (z, y, x),
        arrays["image"],
        PatchLabels(arrays["classes"], arrays.get("instances")),
        arrays.get("prediction"),
        arrays.get("uncertainty"),
    )
