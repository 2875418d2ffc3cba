"""Opens foreign image files.

A format is a function that opens a path as a `Source`; `open_source` picks it by the path. To add one, write such a
function and list it in `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rescueseg.errors import UnreadableVolumeError
from rescueseg.image_files import hdf5, microscope_files, nifti, nrrd_files, slices, tiff, zarr_arrays
from rescueseg.image_files.source import Source, Statement, unreadable

_FORMATS: tuple[tuple[Callable[[str], bool], Callable[[str, Statement], Source]], ...] = (
    (slices.is_planes, slices.open_planes),
    (tiff.is_tiff, tiff.open_tiff),
    (nifti.is_nifti, nifti.open_nifti),
    (nrrd_files.is_nrrd, nrrd_files.open_nrrd),
    (hdf5.is_hdf5, hdf5.open_hdf5),
    (zarr_arrays.is_zarr, zarr_arrays.open_zarr),
    (microscope_files.is_microscope_file, microscope_files.open_microscope_file),
)
_KNOWN = "TIFF, NIfTI, NRRD, HDF5 (file.h5:dataset), Zarr or OME-Zarr, CZI, LIF, ND2, MRC, or a folder of planes"
_OTHERS = (".oib", ".oif", ".oir", ".vsi", ".dm3", ".dm4", ".sld", ".sldy", ".lof", ".xlef", ".dv", ".ser", ".emd")
"""Of other makers: Bio-Formats reads most of them."""


def open_source(path: str, said: Statement | None = None) -> Source:
    """Open an image file of any known format.

    Parameters
    ----------
    path : str
        TIFF, NIfTI, NRRD, CZI, LIF, ND2, MRC, HDF5 (``file.h5:dataset``), Zarr or OME-Zarr (a folder or fsspec URL, with the array's path
        below it if need be); a folder of planes, a pattern, or the files that `slices.join_planes` joined.
    said : Statement, optional
        What a person says of it: axes, which of several images.

    Returns
    -------
    Source
        To be read box by box, and closed.

    Raises
    ------
    UnreadableVolumeError
        If the file is missing, damaged or of an unknown format.
    InvalidVolumeError
        If it holds no 3D image, or several and nobody says which.
    """
    for matches, opener in _FORMATS:
        if matches(path):
            with unreadable(slices.shown(path)):
                return opener(path, said or Statement())
    if "://" not in path and not Path(path).exists():
        raise UnreadableVolumeError("there is no such file", where=path, todo="Check the path")
    if path.lower().endswith(_OTHERS):
        raise UnreadableVolumeError(
            "the format is not read", where=path, todo="Save it as OME-TIFF or OME-Zarr with Fiji or bioformats2raw"
        )
    raise UnreadableVolumeError("the format is not known", where=path, todo=f"Use {_KNOWN}")
