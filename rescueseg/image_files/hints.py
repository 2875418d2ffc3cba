"""What a file's metadata say of how it was acquired and treated: a few words each, kept with the volume.

=============  ================================================================================
key            holds
=============  ================================================================================
microscope     maker and model of the instrument, or the kind of microscopy
objective      model, magnification, numerical aperture, immersion
preprocessing  treatments that file name or description name, such as ``denoised``
description    the free text of the file, cut
=============  ================================================================================

Nothing is guessed: a key is absent where the metadata are silent.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

_LONGEST = 200
_NAMES = {
    "microscope": ("microscope", "instrument", "system name", "microscopetype", "scanner", "modality"),
    "objective": ("objective", "lens", "numerical aperture", "lensna", "magnification"),
    "description": ("description", "descrip", "comment", "info"),
}
"""Parts of a key that make it a hint, in metadata that are a list of keys."""
_TREATMENTS = {
    "denoised": r"de-?nois\w*|bm[34]d|n2v|noise2\w+|care[-_ ]?(?:restored|predict\w*)",
    "deconvolved": r"deconv\w*|decon|huygens",
    "deblurred": r"deblur\w*|sharpen\w*",
    "smoothed": r"smooth\w*|gauss\w*|median[-_ ]?filt\w*",
    "background subtracted": r"(?:bg|background)[-_ ]?sub\w*|rolling[-_ ]?ball",
    "contrast changed": r"clahe|equali[sz]\w*|hist\w*match\w*|gamma[-_ ]?corr\w*",
    "resampled": r"resampl\w*|rescal\w*|bin\dx\d|upsampl\w*|downsampl\w*",
}
"""Treatment, and how names and descriptions write it."""


def of_pairs(pairs: Mapping[str, Any]) -> dict[str, str]:
    """Return the hints in metadata that are a list of keys (ImageJ, NRRD, NIfTI, HDF5).

    Parameters
    ----------
    pairs : mapping
        Keys as the format spells them; values that are no text or number are passed over.

    Examples
    --------
    >>> of_pairs({"Microscope Name": "LSM 880", "LensNA": 1.4, "Pixels": 512})
    {'microscope': 'LSM 880', 'objective': '1.4'}
    """
    texts_by_name: dict[str, list[str]] = {}
    for key, value in pairs.items():
        text = _text(value)
        name = next((n for n, parts in _NAMES.items() if any(p in key.lower() for p in parts)), None)
        if name is not None and text:
            texts_by_name.setdefault(name, []).append(text)
    return {name: _shorten(" ".join(texts)) for name, texts in texts_by_name.items()}


def of_imagej(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the hints in ImageJ metadata: the ``key = value`` lines that Bio-Formats leaves under ``Info``."""
    info = str(meta.get("Info", ""))
    lines = dict(re.findall(r"^\s*([^=\n]{2,120}?)\s*=\s*(.+?)\s*$", info, re.MULTILINE))
    free = "" if lines else info.strip()
    return of_pairs(lines) | ({"description": _shorten(free)} if free else {})


def of_ome(text: str) -> dict[str, str]:
    """Return the hints in OME-XML: instrument, objective, acquisition mode, description."""
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except xml.etree.ElementTree.ParseError:
        return {}
    elements = {name: list(_named(root, name)) for name in ("Microscope", "Objective", "Channel", "Image")}
    first = {name: matches[0] if matches else None for name, matches in elements.items()}
    objective = first["Objective"]
    parts = _attributes(objective, "Manufacturer", "Model")
    if objective is not None:
        parts += [f"{v}×" for v in _attributes(objective, "NominalMagnification")]
        parts += [f"NA {v}" for v in _attributes(objective, "LensNA")]
        parts += _attributes(objective, "Immersion")
    image = first["Image"]
    description = next(iter(_named(image, "Description")), None) if image is not None else None
    hints = {
        "microscope": " ".join(
            [
                *_attributes(first["Microscope"], "Manufacturer", "Model", "Type"),
                *_attributes(first["Channel"], "AcquisitionMode"),
            ]
        ),
        "objective": " ".join(parts),
        "description": (description.text or "") if description is not None else "",
    }
    return {name: _shorten(value) for name, value in hints.items() if value.strip()}


def treatments(*texts: str) -> str:
    """Return the preprocessing that texts name, in the order of the table above, separated by commas.

    Parameters
    ----------
    *texts : str
        File names, descriptions.

    Examples
    --------
    >>> treatments("brain_BM4D_denoised.tif", "deconvolved with Huygens")
    'denoised, deconvolved'
    """
    text = " ".join(texts).lower()
    names = [name for name, words in _TREATMENTS.items() if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", text)]
    return ", ".join(names)


def add_preprocessing(hints: Mapping[str, str], path: str) -> dict[str, str]:
    """Return the hints with the preprocessing that the file's own name or its description names.

    Parameters
    ----------
    hints : mapping
        What the metadata gave.
    path : str
        The file; only its last part counts: how folders are called says nothing of the image.
    """
    named = treatments(PurePosixPath(path).name, hints.get("description", ""))
    return {**hints, **({"preprocessing": named} if named else {})}


def _named(root: xml.etree.ElementTree.Element, name: str) -> Iterator[xml.etree.ElementTree.Element]:
    return (e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == name)


def _attributes(element: xml.etree.ElementTree.Element | None, *names: str) -> list[str]:
    values = [element.get(n, "") for n in names] if element is not None else []
    return [v for v in values if v and v not in ("Unknown", "Other")]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _shorten(text: str) -> str:
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"
