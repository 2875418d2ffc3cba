"""A reviewer's day: two simulated annotators with different habits, who agrees with whom, and what is done about it.

    python tests/benchmarks/reviewers_day.py OUT [FOLDER] [--labels semantic|instance] [--patches 12] [--seed 0]

FOLDER holds a volume with truth (raw.tif, labels.tif, meta.json); without it, the phantom. Anna draws everything one
voxel too large, Bob overlooks objects of fewer than 150 voxels; neither sees the other's labels. Pairs that agree are
settled by STAPLE. Of the others the reviewer sends the worst back (and takes the consensus when it comes again no better), fixes
the next with the truth, and accepts the better half of the rest. Prints the tables and how far each kind of label is from the truth; OUT gets the page.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from rescueseg import volumes
from rescueseg.annotation.agreement import agreement
from rescueseg.annotation.label_files import read_version
from rescueseg.annotation.local_client import LocalClient
from rescueseg.campaign import Campaign
from rescueseg.cli.options import plain_console
from rescueseg.config import check_config
from rescueseg.geometry import Box, isotropic_shape, zyx
from rescueseg.labels import PatchLabels
from rescueseg.queue.effort import effort_by, effort_table
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.randomness import random_generator
from rescueseg.reports import agreement_table as report
from rescueseg.reports.agreement_page import agreement_page, curve, disagreement_view
from rescueseg.simulation.annotator import AnnotatorOptions, SimulatedAnnotator
from rescueseg.volumes.phantom import make_phantom

HABITS = {"anna": AnnotatorOptions(grown_voxels=1), "bob": AnnotatorOptions(smallest_voxels=150)}


def make_campaign(out: Path, source: Path | None, labels: str, patches: int, seed: int) -> tuple[Campaign, QueueStore]:
    """Make a campaign of one volume, with pool tickets for two people each."""
    annotation = {"labels": labels, "consensus": "staple", "agreement_dice": 0.8}
    config = check_config({"name": "day", "classes": ["structure"], "seed": seed, "annotation": annotation})
    campaign = Campaign.create(str(out / "campaign"), config)
    if source is None:
        image, truth, spacing = make_phantom(seed=seed)
    else:
        image, truth = (tifffile.imread(source / name) for name in ("raw.tif", "labels.tif"))
        z, y, x = json.loads((source / "meta.json").read_text())["voxel_size_um_zyx"]
        spacing = (float(z), float(y), float(x))
        truth = (truth > 0).astype(np.uint8)
    for name, array in (("raw.tif", image), ("truth.tif", truth)):
        tifffile.imwrite(out / name, array, metadata={"axes": "ZYX"})
    volumes.import_volume(
        campaign,
        volumes.VolumeImport(str(out / "raw.tif"), volume_id="v", spacing=spacing, truth=str(out / "truth.tif")),
    )
    store = open_queue(campaign)
    store.tickets.add(
        [
            NewTicket(ticket_id=f"pool-0000-{n:02d}", volume_id="v", box=box, annotators=2)
            for n, box in enumerate(draw_boxes(truth, isotropic_shape(spacing, 25_000, truth.shape), patches, seed))
        ]
    )
    return campaign, store


def draw_boxes(truth: np.ndarray, shape: Sequence[int], count: int, seed: int) -> list[Box]:
    """Return boxes that do not overlap and hold at least a fiftieth of structure."""
    rng, found = random_generator(seed, "reviewer's day"), list[Box]()
    for _ in range(2000):
        box = Box(zyx(rng.integers(0, n - s + 1) for n, s in zip(truth.shape, shape, strict=True)), zyx(shape))
        if truth[box.slices].mean() >= 0.02 and not any(box.intersects(other) for other in found):
            found.append(box)
        if len(found) == count:
            break
    return found


def work_through(campaign: Campaign, store: QueueStore) -> None:
    """Let both annotators do their halves, then the reviewer judge what is left."""
    for name, habit in HABITS.items():
        SimulatedAnnotator(campaign, store, name, habit).drain()
    lead = LocalClient(campaign, store, "lead", "reviewer")
    waiting = sorted(lead.to_review(), key=lambda t: t.agreement or 0.0)
    for n, ticket in enumerate(waiting):
        if n == 0:
            lead.reject(ticket.ticket_id, "look again, with care")
        elif n == 1:
            drawn = np.asarray(volumes.open_truth(campaign.volumes, "v")[ticket.box.slices], np.uint8)
            numbered = campaign.config.annotation.labels == "instance"
            fixed = PatchLabels.of_components(drawn) if numbered else PatchLabels(drawn)
            lead.fix(ticket.ticket_id, fixed, "simulated", active_seconds=60.0)
        else:
            scored = [
                (against_truth(campaign, ticket.box, lead.version_labels(ticket.ticket_id, v)), v) for v in (1, 2)
            ]
            lead.accept(ticket.ticket_id, max(scored)[1])
    for name, habit in HABITS.items():
        SimulatedAnnotator(campaign, store, name, habit).drain()
    for ticket in lead.to_review():
        lead.accept_consensus(ticket.ticket_id)


def against_truth(campaign: Campaign, box: Box, labels: PatchLabels) -> float:
    """Return the Dice of labels against the truth."""
    truth = PatchLabels(np.asarray(volumes.open_truth(campaign.volumes, "v")[box.slices], np.uint8))
    return agreement(PatchLabels(labels.classes), truth, 1).value


def quality(campaign: Campaign, store: QueueStore) -> dict[str, list[float]]:
    """Return the Dice against the truth of every version, by who or what made it."""
    found: dict[str, list[float]] = defaultdict(list)
    for ticket in store.views.tickets():
        for version in store.views.annotations(ticket.ticket_id):
            dice = against_truth(campaign, ticket.box, read_version(campaign.storage, version))
            found[version.annotator if version.origin != "consensus" else "STAPLE"].append(dice)
            if version.verdict == "accepted":
                found["accepted"].append(dice)
    return found


def main() -> None:
    """Print the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--labels", choices=["semantic", "instance"], default="semantic")
    parser.add_argument("--patches", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    campaign, store = make_campaign(options.out, options.folder, options.labels, options.patches, options.seed)
    work_through(campaign, store)
    console, measured = plain_console(), report.measure(campaign, store)
    classes, threshold = campaign.config.classes, campaign.config.annotation.agreement_dice
    console.print(report.table("pairs", report.by_pair(measured, threshold), classes))
    console.print(report.table("annotators", report.by_annotator(measured, threshold), classes))
    console.print(effort_table("effort", effort_by(store.views.efforts(), lambda done: done.annotator)))
    console.print(f"tickets: {store.views.counts()}")
    for who, values in quality(campaign, store).items():
        console.print(
            f"Dice against the truth, {who:9} mean {np.mean(values):.3f}, lowest {min(values):.3f}, n {len(values)}"
        )
    (options.out / "agreement.html").write_text(agreement_page(campaign, store, measured))
    (options.out / "curve.png").write_bytes(curve(measured, threshold))
    worst = sorted(measured, key=lambda m: m.comparison.agreement)
    for n, one in enumerate(worst[:3], start=1):
        (options.out / f"disagreement_{n}.png").write_bytes(disagreement_view(campaign, store, one.comparison))
    console.print(f"page and pictures in {options.out}")


if __name__ == "__main__":
    main()
