"""The page of `rescueseg queue agreement --html`: the tables, agreement over time, the most disputed patches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from rescueseg.annotation.label_files import read_version
from rescueseg.campaign import Campaign
from rescueseg.errors import QueueError
from rescueseg.labels import PatchLabels
from rescueseg.progress import Progress
from rescueseg.queue.records import Comparison
from rescueseg.queue.store import QueueStore
from rescueseg.reports import agreement_table as report
from rescueseg.reports.agreement_table import MaskComparison, no_progress
from rescueseg.reports.figures import CLASS_COLOURS, GREY, png
from rescueseg.reports.gallery import BoxPictures
from rescueseg.reports.html import inline, render_page


def agreement_page(
    campaign: Campaign,
    store: QueueStore,
    comparisons: Sequence[MaskComparison],
    pictures: int = 6,
    progress: Progress = no_progress,
) -> str:
    """Return a page that stands alone.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    comparisons : sequence of MaskComparison
        At least one comparison.
    pictures : int
        How many of the patches with the least agreement are drawn.
    progress : callable, optional
        Called with (what is counted, how many are done, how many there are).
    """
    config = campaign.config
    threshold, classes = config.annotation.agreement_dice, config.classes
    objects = config.annotation.labels == "instance"
    worst = sorted(comparisons, key=lambda m: (m.comparison.agreement, m.comparison.ticket_id))[:pictures]
    views = []
    for index, one in enumerate(worst):
        progress("patches drawn", index, len(worst))
        views.append((one.comparison, inline(disagreement_view(campaign, store, one.comparison))))
    tables = [
        ("Pairs", report.by_pair(comparisons, threshold)),
        ("Annotators, each against all others", report.by_annotator(comparisons, threshold)),
        ("Over time", report.over_time(comparisons, threshold)),
    ]
    return render_page(
        "agreement.html",
        name=config.name,
        comparisons=comparisons,
        threshold=threshold,
        headings=report.columns(classes, objects),
        tables=[(title, [(row.who, report.cells(row, classes, objects)) for row in rows]) for title, rows in tables],
        legend=report.LEGEND,
        curve=inline(curve(comparisons, threshold)),
        worst=views,
    )


def disagreement_view(campaign: Campaign, store: QueueStore, comparison: Comparison) -> bytes:
    """Draw both masks of a compared pair, where they differ, and what was accepted where that is neither."""
    versions = store.views.annotations(comparison.ticket_id)
    pair = report.versions_of(store, comparison)
    accepted = next((v for v in versions if v.verdict == "accepted" and v not in pair), None)
    masks = [(v.annotator, read_version(campaign.storage, v)) for v in pair]
    third_mask = read_version(campaign.storage, accepted) if accepted else None
    draw = BoxPictures(campaign.volumes, campaign.config.n_classes)
    return draw.disagreeing(comparison.volume_id, comparison.box, masks, third_mask)


def single_version_view(campaign: Campaign, store: QueueStore, ticket_id: str) -> bytes:
    """Draw the latest version of a ticket that one person annotated, beside the mask that it started from.

    Raises
    ------
    QueueError
        If nothing was handed in for it.
    """
    ticket, versions = store.views.ticket(ticket_id), store.views.annotations(ticket_id)
    if not versions:
        raise QueueError("nothing was handed in for it", where=ticket_id, todo="See 'rescueseg queue review'")
    empty = np.zeros(ticket.box.shape_zyx, np.uint8)
    start = campaign.storage.read_array(ticket.prefill) if ticket.prefill else empty
    masks = [
        ("the first mask", PatchLabels.of_instances(start) if start.dtype == np.uint32 else PatchLabels(start)),
        (versions[-1].annotator, read_version(campaign.storage, versions[-1])),
    ]
    return BoxPictures(campaign.volumes, campaign.config.n_classes).disagreeing(
        ticket.volume_id, ticket.box, masks, None
    )


def curve(comparisons: Sequence[MaskComparison], threshold: float) -> bytes:
    """Draw the agreement of each pair of people over time."""
    points: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
    for one in comparisons:
        comparison = one.comparison
        points[" and ".join(sorted(comparison.annotators))].append((comparison.at, comparison.agreement))
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    for n, (pair, pair_points) in enumerate(sorted(points.items())):
        times, values = zip(*pair_points, strict=True)
        axes.plot(
            times,
            values,
            "o-" if len(pair_points) < 50 else "-",
            label=pair,
            color=CLASS_COLOURS[n % len(CLASS_COLOURS)],
            linewidth=1,
        )
    axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label="goes to a reviewer below")
    axes.set(ylim=(0, 1.03), ylabel="agreement")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return png(figure)
