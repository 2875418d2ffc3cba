"""Opens foreign image files.

A format is a function that opens a path as an `ArraySource`; `open_source` picks it by the path. To add one, write
such a function and list it in `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rescueseg.errors import UnreadableVolumeError
from rescueseg.volumes import arrays, medical, tiff
from rescueseg.volumes.source import ArraySource, Source, unreadable

_FORMATS: tuple[tuple[Callable[[str], bool], Callable[[str], ArraySource]], ...] = (
    (arrays.is_hdf5, arrays.open_hdf5),
    (arrays.is_zarr, arrays.open_zarr),
    (tiff.is_tiff, tiff.open_tiff),
    (medical.is_nifti, medical.open_nifti),
    (medical.is_nrrd, medical.open_nrrd),
)


def open_source(path: str) -> Source:
    """Open an image file of any known format.

    Parameters
    ----------
    path : str
        TIFF, NIfTI, NRRD, HDF5 (``file.h5:dataset``), Zarr or OME-Zarr (a folder or fsspec URL, with the array's path
        below it if need be).

    Returns
    -------
    Source
        To be read box by box, and closed.

    Raises
    ------
    UnreadableVolumeError
        If the file is missing, damaged or of an unknown format.
    InvalidVolumeError
        If it holds no 3D image.
    """
    for matches, opener in _FORMATS:
        if matches(path):
            with unreadable(path):
                return opener(path)
    if "://" not in path and not Path(path).exists():
        raise UnreadableVolumeError("there is no such file", where=path, todo="Check the path")
    raise UnreadableVolumeError(
        "the format is not known", where=path, todo="Use TIFF, NIfTI, NRRD, HDF5 (file.h5:dataset), Zarr or OME-Zarr"
    )
