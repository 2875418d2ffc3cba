"""Units of length, as file formats spell them."""

from __future__ import annotations

import re

UNITS_UM = {
    "m": 1e6, "meter": 1e6, "meters": 1e6, "metre": 1e6, "metres": 1e6, "cm": 1e4, "centimeter": 1e4,
    "centimetre": 1e4, "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "millimeters": 1e3, "millimetres": 1e3,
    "um": 1.0, "µm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "micrometers": 1.0,
    "micrometres": 1.0, "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3, "nanometers": 1e-3, "nanometres": 1e-3,
    "angstrom": 1e-4, "angstroms": 1e-4, "ångström": 1e-4, "å": 1e-4, "pm": 1e-6, "picometer": 1e-6, "picometre": 1e-6,
    "inch": 25_400.0, "inches": 25_400.0, "in": 25_400.0, "thou": 25.4, "mil": 25.4, "ft": 304_800.0,
}  # fmt: skip
"""Micrometre per unit, lower case, with the micro sign for mu and å for the sign of the Ångström."""
_SAME = str.maketrans({"μ": "µ", "\u212b": "å", "Å": "å"})


def to_um(value: float, unit: str | None) -> float | None:
    r"""Return a length in micrometre, None for an unknown unit.

    Parameters
    ----------
    value : float
        The length.
    unit : str or None
        As a file spells it; ImageJ writes letters beyond ASCII as ``\u00B5``.

    Examples
    --------
    >>> to_um(300, "nm"), to_um(1, "\\u03BCm"), to_um(1, "pixel")
    (0.3, 1.0, None)
    """
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), (unit or "").strip(" \t\n\0\"'"))
    factor = UNITS_UM.get(text.translate(_SAME).lower())
    return None if factor is None else float(value) * factor
