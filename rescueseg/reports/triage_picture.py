"""The decision as a picture: the questions in their order, how far each answer is from its threshold, and the route."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rescueseg.reports.figures import BLUE, GREEN, GREY, ORANGE, png
from rescueseg.triage.trainer_choice import pick_trainer
from rescueseg.triage.tree import ROUTES, Step

if TYPE_CHECKING:
    from rescueseg.triage.records import Triage

_LEFT, _WIDTH = 0.0, 4.6
_RIGHT, _ROUTE_WIDTH = 9.4, 3.6
_SCALE = (5.5, 8.6)
"""Where the bars of the distances lie, in the figure's units."""
_OCTAVES = 3.0


class _Rectangle(NamedTuple):
    """Where a box lies, in the figure's units."""

    x: float
    y: float
    width: float
    height: float


def draw_decision(result: Triage, *, numbered: bool) -> bytes:
    """Return the path through the tree as PNG.

    The path that was followed is orange; a bar shows by what factor the evidence lies on the side of yes (right) or no (left) of its
    threshold, on a logarithmic scale of 1/8 to 8; it is grey where patches cut what was measured, so that neither is known.

    Parameters
    ----------
    result : Triage
        What the triage found.
    numbered : bool
        Whether the campaign annotates numbered objects: beside each route stands the trainer that it would have here.
    """
    rows = len(result.steps)
    figure = Figure(figsize=(13.6, 1.35 * rows + 2.3), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.2, 13.3)
    axes.set_ylim(-1.9, rows + 0.35)
    decision = next((i for i, step in enumerate(result.steps) if step.answer), rows)
    for index, step in enumerate(result.steps):
        y, last = rows - 1 - index, index == rows - 1
        trainer = result.trainer if index == decision else pick_trainer(ROUTES[step.route], numbered=numbered).name
        _question(axes, y, step, trainer, on_path=index <= decision, decides=index == decision, last=last)
    last_box = _Rectangle(_LEFT, -0.82, _WIDTH, 0.5)
    last_title = ROUTES["custom"].title if decision < rows else result.title
    _box(axes, last_box, last_title, active=decision == rows, dim=decision < rows)
    axes.text(_SCALE[0], rows + 0.1, "no", color=BLUE, ha="left", fontsize=9)
    axes.text(_SCALE[1], rows + 0.1, "yes", color=ORANGE, ha="right", fontsize=9)
    axes.text(sum(_SCALE) / 2, rows + 0.1, "threshold", color=GREY, ha="center", fontsize=9)
    summary = f"{result.title} → {result.trainer}" + (
        f"   (better, not installed: {', '.join(result.missing)})" if result.missing else ""
    )
    axes.text(_LEFT, -1.25, summary, fontsize=13, weight="bold", va="center")
    axes.text(_LEFT, -1.62, "\n".join(textwrap.wrap(result.advice[0], 150)), fontsize=9.5, color=GREY, va="center")
    axes.set_title(
        f"Rough mask from: {result.mask}"
        + (f"; your word: {result.word or result.structure}" if result.structure else ""),
        loc="left",
        fontsize=10,
    )
    return png(figure)


def _question(axes: Axes, y: float, step: Step, trainer: str, *, on_path: bool, decides: bool, last: bool) -> None:
    """Draw one question; those up to the one that decides are on the path."""
    question, answer = _Rectangle(_LEFT, y + 0.1, _WIDTH, 0.75), _Rectangle(_RIGHT, y + 0.1, _ROUTE_WIDTH, 0.75)
    _box(axes, question, step.question, step.detail, active=decides, dim=not on_path)
    _box(axes, answer, ROUTES[step.route].title, trainer, active=decides, dim=not decides)
    if not decides:
        colour = ORANGE if on_path else "#d1d5db"
        axes.annotate(
            "",
            (0.6, y - (0.32 if last else 0.15)),
            (0.6, y + 0.08),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6},
        )
        axes.text(
            0.75, y - 0.04, "no" if step.answer is not None else "not known", fontsize=8, color=colour, va="center"
        )
    middle, half = sum(_SCALE) / 2, (_SCALE[1] - _SCALE[0]) / 2
    axes.plot([middle, middle], [y + 0.18, y + 0.78], color=GREY, lw=1)
    if step.measured is None:
        axes.text(middle + 0.1, y + 0.47, "not measured", fontsize=8, color=GREY, va="center")
        return
    octaves = max(-_OCTAVES, min(_OCTAVES, math.log2(max(step.measured, 1e-9))))
    length = half * octaves / _OCTAVES
    colour = GREY if step.answer is None else ORANGE if octaves >= 0 else BLUE
    axes.barh(y + 0.48, length, 0.26, left=middle, color=colour, alpha=1.0 if on_path else 0.35)
    axes.text(middle + length + (0.08 if length >= 0 else -0.08), y + 0.48, f"{step.measured:.2g}×", fontsize=8.5, va="center",
              ha="left" if length >= 0 else "right", color="black" if on_path else GREY)  # fmt: skip


def _box(axes: Axes, place: _Rectangle, text: str, small: str = "", *, active: bool = False, dim: bool = False) -> None:
    x, y, width, height = place
    edge = ORANGE if active else "#d1d5db" if dim else GREEN
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            fc="#fff7ed" if active else "white",
            ec=edge,
            lw=2 if active else 1.2,
        )
    )
    colour = "#9ca3af" if dim else "black"
    axes.text(
        x + 0.12,
        y + height * (0.66 if small else 0.5),
        text,
        fontsize=10,
        va="center",
        color=colour,
        weight="bold" if active else "normal",
    )
    if small:
        axes.text(
            x + 0.12, y + height * 0.27, "\n".join(textwrap.wrap(small, 66)), fontsize=7.6, va="center", color=colour
        )
