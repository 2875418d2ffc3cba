"""The consistency report as a page for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rescueseg.volumes.consistency import Changes, ConsistencyReport, VolumeVerdict

_COLOURS = {"accept": "green", "normalise": "cyan", "separate domain": "yellow", "refuse": "red"}
_COLUMNS = (
    "volume",
    "verdict",
    "spacing µm",
    "values",
    "clipped",
    "variogram noise",
    "blur µm",
    "structure µm",
    "chunks read",
)


def page(report: ConsistencyReport) -> Iterator[RenderableType]:
    """Yield a table of the numbers, one sentence on each volume, and the domains."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=_LEGEND, caption_justify="left")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold", no_wrap=name in ("verdict", "spacing µm"))
    for v in report.volumes:
        table.add_row(v.volume_id, Text(v.verdict, style=_COLOURS[v.verdict]), *_cells(v))
    yield table
    for v in report.volumes:
        line = Text.assemble((v.volume_id, "bold"), ": ", (v.verdict, _COLOURS[v.verdict]), f", {v.reason}.")
        for warning in v.warnings:
            line.append(f"\n  look at it: {warning}", style="yellow")
        if v.hints:
            metadata = "; ".join(f"{key}: {value}" for key, value in sorted(v.hints.items()))
            line.append(f"\n  metadata: {metadata}", style="dim")
        yield line
    yield Text()
    for domain in report.domains.domains:
        spacing = " × ".join(f"{s:.4g}" for s in domain.spacing_um_zyx)
        n = domain.normalisation
        yield Text.assemble(
            "Domain ",
            (domain.name, "bold"),
            f": {spacing} µm, intensities {n.low:.5g} to {n.high:.5g}, mean {n.mean:.5g}, standard deviation {n.std:.4g}; "
            + ", ".join(sorted(domain.volumes)),
        )


_LEGEND = (
    "values: effective bit depth, stored as; clipped: share at the lowest and the highest value, where that is a spike; "
    "variogram noise: share of the variance; blur: of the strongest edges in the plane; structure: z y x, half of its correlation lost"
)


def change_lines(changes: Changes, applied: bool) -> Iterator[str]:
    """Yield what applying changes, or changed."""
    would = "" if applied else "would be "
    for ids, what in (
        (changes.refused, "refused: not sampled, trained on or predicted"),
        (changes.readmitted, "used again"),
        (changes.moved, "moved to another domain"),
        (changes.scaled, "given the normalisation of the domain"),
    ):
        if ids:
            yield f"{', '.join(ids)}: {would}{what}"


def _cells(v: VolumeVerdict) -> list[str]:
    levels, d = v.numbers.levels, v.numbers
    bits = f"{levels.bits} bit" if levels.bits is not None else "broken"
    step = f", step {levels.step:g}" if levels.step is not None and levels.step > 1 else ""
    gaps = f", {levels.unused:.0%} unused" if levels.unused > 0.5 else ""
    channels = f" × {v.channels} channels" if v.channels > 1 else ""
    return [
        " × ".join(f"{s:.4g}" for s in v.spacing_um_zyx),
        f"{bits}{step}{gaps}, {v.dtype}, {levels.low:g}…{levels.high:g}{channels}",
        f"{levels.low_share:.1%} {levels.high_share:.1%}",
        f"{d.noise_share:.0%}",
        "–" if v.blur_um is None else f"{v.blur_um:.2g}",
        " ".join("–" if s is None else f"{s:.2g}" for s in v.structure_um_zyx),
        f"{d.chunks_read} of {d.chunks}",
    ]
