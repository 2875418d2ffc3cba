"""What `rescueseg sample` shows: the sampled patches with their reasons, what they ask of people, remarks, the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.campaign import Campaign
from rescueseg.evaluation.learning_curve import advise
from rescueseg.geometry import Box
from rescueseg.progress import Progress
from rescueseg.queue.records import NewTicket, TicketRecord
from rescueseg.records import Holdout, QueriedPatch, VolumeRecord
from rescueseg.reports.contact_sheet import SHEET, contact_sheet
from rescueseg.sampling.effort import Pace, effort_of
from rescueseg.sampling.patches import patch_shape
from rescueseg.sampling.strata import ARTEFACT


def table(holdout: Holdout, starting: Sequence[QueriedPatch]) -> Table:
    """Return one row per patch, the holdout first."""
    result = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("part", "volume", "box zyx", "stratum", "why"):
        result.add_column(name, overflow="fold")
    later = set(holdout.later or ())
    for box in holdout.all_boxes:
        words = box.stratum.replace("_", " ")
        part = f"{box.part}, later" if box in later else box.part
        result.add_row(part, box.volume_id, str(box.box).strip("[]"), words, box.reason or "")
    for patch in starting:
        words = patch.stratum.replace("_", " ")
        why = patch.reason.removeprefix(f"{words}: ")
        result.add_row("starting", patch.volume_id, str(patch.box).strip("[]"), words, why)
    return result


def effort_lines(
    volumes: Sequence[VolumeRecord], holdout: Holdout, first: Sequence[NewTicket], pace: Pace
) -> list[str]:
    """Say what a sampling asks of people before the first model, and after it.

    Parameters
    ----------
    volumes : sequence of VolumeRecord
        Those that may be used: holdout boxes of one that came with truth ask for nothing.
    holdout : Holdout
        Frozen, or about to be.
    first : sequence of NewTicket
        The tickets before the first model; what two people annotate counts twice.
    pace : Pace
        How many times longer than assumed the campaign's people take.
    """
    without = {v.volume_id for v in volumes if v.truth is None}
    later = effort_of([b.box for b in holdout.later or () if b.volume_id in without], pace.holdout)
    held = effort_of(_boxes([t for t in first if t.purpose != "pool"]), pace.holdout)
    patches = effort_of(_boxes([t for t in first if t.purpose == "pool"]), pace.patches)
    how = (
        "by the minutes of this campaign's annotations"
        if pace.is_measured
        else "assumed: 40 s a plane of 80×80, 90 s a box"
    )
    lines = [
        f"Asked of people before the first model: about {held.hours + patches.hours:.1f} hours ({how})",
        f"  holdout: {held.sentence()}" + ("" if held.boxes else ", the truth came with the volumes"),
        f"  first patches: {patches.sentence()}",
    ]
    if later.boxes:
        lines.append(f"  later, with each generation some: {later.sentence()}")
    if twice := sum(ticket.annotators > 1 for ticket in first):
        lines.append(f"  {twice} of the patches are annotated by two people each, and counted twice")
    return lines


def waiting_lines(tickets: Sequence[TicketRecord], pace: Pace) -> list[str]:
    """Say what the tickets that wait ask of people, the holdout first; nothing where none waits."""
    open_tickets = [t for t in tickets if t.status in ("queued", "leased")]
    groups = {
        "holdout": (_boxes([t for t in open_tickets if t.purpose != "pool"]), pace.holdout),
        "patches": (_boxes([t for t in open_tickets if t.purpose == "pool"]), pace.patches),
    }
    return [
        f"To annotate: {name}: {effort_of(boxes, times).sentence()}" for name, (boxes, times) in groups.items() if boxes
    ]


def _boxes(tickets: Sequence[NewTicket]) -> list[Box]:
    """Return the boxes of tickets, once for each person who annotates one."""
    return [ticket.box for ticket in tickets for _ in range(ticket.annotators)]


def remarks(campaign: Campaign, holdout: Holdout, starting: Sequence[QueriedPatch]) -> list[str]:
    """Return sentences on the patch shapes, a stratum that the data do not have, and how much to annotate."""
    lines = []
    for volume in campaign.volumes.records():
        shape = patch_shape(campaign.config, volume, holdout)
        lengths = " × ".join(f"{n * s:.3g}" for n, s in zip(shape, volume.spacing_um_zyx, strict=True))
        lines.append(f"Patches of {volume.volume_id}: {'×'.join(map(str, shape))} voxels (zyx), {lengths} µm")
    measured = [box for box in holdout.all_boxes if box.reason is not None]
    if measured and ARTEFACT not in {b.stratum for b in measured} | {p.stratum for p in starting}:
        lines.append("No imaging artefact was found where the holdout was drawn; other strata took its turns")
    target = campaign.config.sampling.starting_patches
    if len(starting) < target:
        lines.append(f"Only {len(starting)} of {target} starting patches fit beside the holdout")
    if advice := advise(campaign):
        lines.append(f"How much to annotate: {advice}")
    return lines


def write_sheet(
    campaign: Campaign, holdout: Holdout, starting: Sequence[QueriedPatch], progress: Progress | None = None
) -> str:
    """Write the contact sheet and return its URL; see `contact_sheet`."""
    campaign.storage.write_bytes(SHEET, contact_sheet(campaign, holdout, starting, progress))
    return campaign.storage.url_of(SHEET)
