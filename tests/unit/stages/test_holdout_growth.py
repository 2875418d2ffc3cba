"""A holdout that people annotate by and by: what is asked for when, and by what generations are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from rescueseg import volumes
from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import CampaignError
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.evaluation.holdout_scores import evaluate_generation
from rescueseg.evaluation.learning_curve import generation_results
from rescueseg.evaluation.stored_scores import scored_today
from rescueseg.evaluation.truth import missing_truth
from rescueseg.queue.records import Filters
from rescueseg.queue.store import QueueStore, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.stages import tickets
from rescueseg.stages.evaluate import evaluate
from rescueseg.stages.holdout_growth import more_boxes, take_annotated
from rescueseg.volumes.phantom import make_phantom
from tests.benchmarks.growing_holdout import GAINS, SCHEDULES, row
from tests.evaluated_campaign import make_campaign, write_generation


def add(campaign: Campaign, folder: Path, truth: bool) -> None:
    image, labels, spacing = make_phantom((24, 128, 128), seed=3)
    for part, array in (("image", image), ("truth", labels)):
        tifffile.imwrite(folder / f"{part}.tif", array, metadata={"axes": "ZYX"})
    given = str(folder / "truth.tif") if truth else None
    volumes.import_volume(
        campaign, volumes.VolumeImport(str(folder / "image.tif"), volume_id="a", spacing=spacing, truth=given)
    )


def frozen(campaign: Campaign) -> Holdout:
    holdout = campaign.holdout()
    assert holdout is not None
    return holdout


def parts(boxes: object) -> list[int]:
    return [sum(b.part == part for b in boxes) for part in ("validation", "test")]  # type: ignore[attr-defined]


def annotate(campaign: Campaign, store: QueueStore, count: int) -> None:
    """Hand in the next holdout boxes, all background."""
    for _ in range(count):
        lease = next(
            lease
            for part in ("validation", "test")
            if (lease := store.leases.claim("ann", 60, filters=Filters(purpose=part))) is not None  # type: ignore[arg-type]
        )
        labels = np.zeros(lease.ticket.box.shape_zyx, np.uint8)
        submit_labels(campaign, store, lease, "ann", labels, Work("test", 1.0))


def test_four_boxes_of_each_part_come_first_and_two_more_with_each_generation(
    campaign: Campaign, tmp_path: Path
) -> None:
    add(campaign, tmp_path, truth=False)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    holdout = frozen(campaign)
    assert parts(holdout.boxes) == parts(holdout.later) == [4, 4]
    assert [b.stratum for b in holdout.boxes[::2]] == ["dense", "worst_case", "typical", "low_snr"]
    assert len(missing_truth(campaign)) == 8

    places = campaign.volumes.shared_places()
    barred = holdout.guarded("a", places)
    assert all(any(g.contains(b.box) for g in barred) for b in holdout.all_boxes), "kept apart from the start"
    pool = [t.box for t in store.views.tickets(purpose="pool")]
    assert not any(box.intersects(b) for box in pool for b in barred)

    annotate(campaign, store, 8)
    assert missing_truth(campaign) == []
    assert take_annotated(campaign, store) == 0
    first = more_boxes(campaign, 1, store)
    store.tickets.add(first)
    assert parts(frozen(campaign).boxes) == [4, 4], "not before they are annotated"
    assert [t.patch for t in more_boxes(campaign, 1, store)] == [t.patch for t in first], "a rerun asks for the same"
    assert missing_truth(campaign) == [], "no generation waits for them"

    annotate(campaign, store, 3)
    assert take_annotated(campaign, store) == 3
    assert take_annotated(campaign, store) == 0
    grown = frozen(campaign)
    assert (parts(grown.boxes), parts(grown.later)) == ([6, 5], [2, 3])
    assert set(grown.guarded("a", places)) == set(barred)
    second = more_boxes(campaign, 2, store)
    assert not {t.patch for t in second} & {t.patch for t in first}
    store.tickets.add(second)
    annotate(campaign, store, 5)
    take_annotated(campaign, store)
    assert (parts(frozen(campaign).boxes), frozen(campaign).later) == ([8, 8], None)
    assert more_boxes(campaign, 3, store) == []
    store.close()


def test_what_came_with_truth_is_asked_of_nobody_and_counts_at_once(campaign: Campaign, tmp_path: Path) -> None:
    add(campaign, tmp_path, truth=True)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    assert parts(frozen(campaign).boxes) == [8, 8]
    assert frozen(campaign).later is None
    assert store.views.tickets(purpose="validation") == []
    store.close()


def test_a_box_that_was_put_off_is_never_lost(campaign: Campaign, tmp_path: Path) -> None:
    add(campaign, tmp_path, truth=False)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    with pytest.raises(CampaignError, match="only grow"):
        campaign.freeze_holdout(frozen(campaign).model_copy(update={"later": None}))
    store.close()


def test_an_older_holdout_has_grown_already(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, truth=False)
    assert "later" not in campaign.storage.read_json("holdout.json")
    store = open_queue(campaign)
    assert more_boxes(campaign, 1, store) == []
    assert take_annotated(campaign, store) == 0
    store.close()


def with_few_boxes(tmp_path: Path) -> tuple[Campaign, tuple[HoldoutBox, ...]]:
    """Return a campaign whose generation 0 was judged on four boxes a part, and the boxes that wait."""
    campaign = make_campaign(tmp_path)
    everything = frozen(campaign)
    few = tuple(b for part in ("validation", "test") for b in [b for b in everything.boxes if b.part == part][:4])
    rest = tuple(b for b in everything.boxes if b not in few)
    campaign.storage.write_json("holdout.json", everything.model_copy(update={"boxes": few, "later": rest}).to_json())
    write_generation(campaign, 0, 3.5)
    return campaign, rest


def test_the_champion_is_judged_on_the_new_boxes_too(tmp_path: Path) -> None:
    """On the four boxes that both had from the start nothing could ever be decided: 1/16 is above 5 %."""
    campaign, rest = with_few_boxes(tmp_path)
    judged = campaign.generation(0).require(EVALUATION)
    assert len(judged.evaluation.boxes) == 8
    campaign.freeze_holdout(frozen(campaign).with_annotated({b.patch for b in rest}))
    write_generation(campaign, 1, 0.3, judged=False)
    judgement = evaluate(campaign, 1)
    assert judgement.comparison is not None
    assert (judgement.comparison.boxes, judgement.comparison.verdict, judgement.champion) == (8, "better", 1)
    assert campaign.generation(0).require(EVALUATION) == judged, "what was judged stays"
    whole = evaluate_generation(campaign, 0, choose_scored_objects).validation
    assert whole is not None
    assert generation_results(campaign.generations())[0].validation_dice == pytest.approx(whole.dice)
    history, remarks = scored_today(campaign, choose_scored_objects)
    shown = [{b.box for b in j.evaluation.boxes} for j in history]
    assert (len(shown[0]), shown[0], remarks) == (16, shown[1], []), (
        "the report sets both side by side on the same boxes"
    )


@pytest.mark.parametrize("harm", ["maps gone", "maps damaged", "snapshot gone"])
def test_a_generation_without_maps_of_the_new_boxes_is_said_to_be_no_comparison(tmp_path: Path, harm: str) -> None:
    campaign, rest = with_few_boxes(tmp_path)
    campaign.freeze_holdout(frozen(campaign).with_annotated({b.patch for b in rest}))
    write_generation(campaign, 1, 0.3, judged=False)
    if harm == "maps gone":
        campaign.storage.remove("generations/0000/maps")
    elif harm == "snapshot gone":
        campaign.storage.remove("generations/0000/snapshot.json")
    else:
        for file in Path(campaign.storage.path("generations/0000/maps")).rglob("c/*/*/*/*"):
            file.write_bytes(file.read_bytes()[:-7])
    evaluate(campaign, 1)
    history, remarks = scored_today(campaign, choose_scored_objects)
    assert [len(j.evaluation.boxes) for j in history] == [8, 16]
    assert len(remarks) == 1
    assert remarks[0].startswith("Generation 0 is scored on 8 boxes, the last one on 16, of which 8 are the same")


def test_growing_by_twos_decides_as_early_as_eight_boxes_at_once() -> None:
    """A part of tests/benchmarks/growing_holdout.py: gain 0.05, then more, in noise of 0.05."""
    at_once, by_twos, by_ones = (
        row(SCHEDULES[name], 0.5 * GAINS, 0.05, 60)[0]
        for name in ("8 at once", "4, then 2 more each", "4, then 1 more each")
    )
    assert by_twos[1] >= at_once[1]
    assert by_twos[9] >= 0.95
    assert by_ones[9] < 0.9, "small steps use the campaign's error up on boxes that tell little"
    equal = row(SCHEDULES["4, then 2 more each"], 0 * GAINS, 0.05, 100)[0]
    assert equal[9] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
