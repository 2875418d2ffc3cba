"""What `rescueseg sample` shows: the sampled patches with their reasons, remarks, the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rescueseg.campaign import Campaign
from rescueseg.evaluation.learning_curve import advise
from rescueseg.progress import Progress
from rescueseg.records import Holdout, QueriedPatch
from rescueseg.reports.contact_sheet import SHEET, contact_sheet
from rescueseg.sampling.patches import patch_shape
from rescueseg.sampling.strata import ARTEFACT


def table(holdout: Holdout, starting: Sequence[QueriedPatch]) -> Table:
    """Return one row per patch, the holdout first."""
    result = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("part", "volume", "box zyx", "stratum", "why"):
        result.add_column(name, overflow="fold")
    for box in holdout.boxes:
        words = box.stratum.replace("_", " ")
        result.add_row(box.part, box.volume_id, str(box.box).strip("[]"), words, box.reason or "")
    for patch in starting:
        words = patch.stratum.replace("_", " ")
        why = patch.reason.removeprefix(f"{words}: ")
        result.add_row("starting", patch.volume_id, str(patch.box).strip("[]"), words, why)
    return result


def remarks(campaign: Campaign, holdout: Holdout, starting: Sequence[QueriedPatch]) -> list[str]:
    """Return sentences on the patch shapes, a stratum that the data do not have, and how much to annotate."""
    lines = []
    for volume in campaign.volumes.records():
        shape = patch_shape(campaign.config, volume, holdout)
        lengths = " × ".join(f"{n * s:.3g}" for n, s in zip(shape, volume.spacing_um_zyx, strict=True))
        lines.append(f"Patches of {volume.volume_id}: {'×'.join(map(str, shape))} voxels (zyx), {lengths} µm")
    measured = [box for box in holdout.boxes if box.reason is not None]
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
