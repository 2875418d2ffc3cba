"""Colours of delivered labels: of classes for people who see colours differently, of objects so that neighbours differ."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_GOLDEN = 0.618034
_SHADES = ((0.85, 1.0), (0.55, 1.0), (0.85, 0.65))
"""Saturation and brightness; hues that are used again get another one."""


def class_colours(count: int) -> list[Colour]:
    """Return an 8-bit RGB colour for each of classes 1…count, all different.

    The first seven can be told apart by colour-blind people [1]_.

    References
    ----------
    .. [1] Okabe & Ito 2008, https://jfly.uni-koeln.de/color/

    Examples
    --------
    >>> class_colours(2)
    [(230, 159, 0), (86, 180, 233)]
    >>> len(set(class_colours(254)))
    254
    """
    colours = list(_OKABE_ITO[:count])
    number = 0
    while len(colours) < count:
        number += 1
        candidate = object_colour(number)
        if candidate not in colours:
            colours.append(candidate)
    return colours


def object_colour(number: int) -> Colour:
    """Return the 8-bit RGB colour of an object; objects of neighbouring numbers get distant hues.

    Examples
    --------
    >>> object_colour(1), object_colour(2)
    ((255, 38, 38), (115, 156, 255))
    """
    saturation, brightness = _SHADES[(number - 1) % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((number - 1) * _GOLDEN % 1.0, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)
