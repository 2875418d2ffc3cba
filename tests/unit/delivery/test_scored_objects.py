"""An evaluation scores the objects that a delivery of the model would make: bars of two blocks that touch, one piece of mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.champion import EVALUATION, judge
from rescueseg.evaluation.holdout_scores import assign, check_evaluation, evaluate_generation, score_boxes, stored_maps
from rescueseg.evaluation.pooled import flat_scores
from rescueseg.evaluation.scores import FORMAT, FORMAT_WITHOUT_OBJECTS, Evaluation
from rescueseg.evaluation.stored_scores import SCORES, current_evaluation, evaluation_on_grown, stored_evaluation
from rescueseg.evaluation.truth import holdout_truth
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.models.predictor import AXES, Output
from rescueseg.postprocessing.object_rule import ObjectRule
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import make_queue, open_queue
from rescueseg.queue.submission import Work
from rescueseg.records import Holdout, HoldoutBox
from rescueseg.reports.campaign_report import write_report
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume
from tests.evaluated_campaign import make_campaign as make_class_campaign
from tests.evaluated_campaign import write_generation, write_maps, write_model
from tests.touching_balls import flow_to_middles

SHAPE, SPACING = (16, 60, 176), (0.5, 0.2, 0.2)
WIDTH = 44
"""Of a holdout box, in which one bar lies: two blocks of 8×20×20 voxels, 4 µm along each axis, face to face along x."""
HALF_UM = 2.0
BOXES = tuple(
    HoldoutBox(
        volume_id="phantom",
        box=Box((0, 0, WIDTH * i), (16, 40, WIDTH)),
        part="validation" if i % 2 else "test",
        stratum="dense",
    )
    for i in range(4)
)
OUTPUTS = {
    "border_distance": Output(name="border_distance", channels=1, kind="distance"),
    "flow": Output(name="flow", channels=3, kind="flow", directions=AXES),
    "object_probability": Output(name="object_probability", channels=1, kind="share"),
    "star_distance": Output(name="star_distance", channels=66, kind="distance", at_peaks_of="object_probability"),
}
Arrays = Mapping[str, np.ndarray]


def bars() -> np.ndarray:
    """Return the number of the block that each voxel is in."""
    blocks = np.zeros(SHAPE, np.uint16)
    for number, x in enumerate(x + d for x in range(2, SHAPE[2], WIDTH) for d in (0, 20)):
        blocks[4:12, 10:30, x : x + 20] = number + 1
    return blocks


BLOCKS = bars()


def probability_of(mask: np.ndarray) -> np.ndarray:
    """Return the probabilities of a model that is as sure everywhere."""
    return np.stack([np.where(mask, 0.05, 0.95), np.where(mask, 0.95, 0.05)])


def border_distance() -> np.ndarray:
    """Return the distance to the border of each voxel's own block."""
    distances = [ndimage.distance_transform_edt(n == BLOCKS, sampling=SPACING) for n in range(1, BLOCKS.max() + 1)]
    return np.max(distances, axis=0)[None]


def star_maps() -> dict[str, np.ndarray]:
    """Return what a perfect model of star-convex objects says of the blocks, at their middles."""
    from rescueseg.models.polyhedra import star_directions

    directions = star_directions(66).astype(float)
    rays = HALF_UM / np.abs(directions).max(axis=1)
    probability, lengths = np.zeros((1, *SHAPE)), np.zeros((66, *SHAPE), np.float32)
    for number in range(1, BLOCKS.max() + 1):
        z, y, x = np.round(np.mean(np.nonzero(number == BLOCKS), axis=1)).astype(int)
        probability[0, z, y, x] = 0.9
        lengths[:, z, y, x] = rays
    return {"object_probability": probability, "star_distance": lengths}


def make_campaign(folder: Path, *, annotated: bool = False, boxes: Sequence[HoldoutBox] = BOXES) -> Campaign:
    """Return a campaign of the bars; where `annotated`, people numbered the objects of its boxes, and nothing else is known."""
    folder.mkdir(exist_ok=True)
    settings = {"name": "bars", "classes": ["block"], "annotation": {"labels": "instance"}}
    campaign = Campaign.create(str(folder / "campaign"), check_config(settings))
    make_queue(campaign)
    tifffile.imwrite(folder / "image.tif", (BLOCKS > 0).astype(np.uint8) * 100)
    tifffile.imwrite(folder / "truth.tif", BLOCKS)
    truth = {} if annotated else {"truth": str(folder / "truth.tif"), "truth_type": "instance"}
    import_volume(campaign, VolumeImport(str(folder / "image.tif"), volume_id="phantom", spacing=SPACING, **truth))
    campaign.freeze_holdout(Holdout(boxes=tuple(boxes), guard_zyx=(1, 2, 2)))
    if annotated:
        store = open_queue(campaign)
        tickets = [
            NewTicket(ticket_id=f"h{i}", volume_id=b.volume_id, box=b.box, purpose=b.part, stratum=b.stratum)
            for i, b in enumerate(boxes)
        ]
        store.tickets.add(tickets)
        while (lease := store.leases.claim("ann", 60)) is not None:
            labels = PatchLabels.of_instances(BLOCKS[lease.ticket.box.slices].astype(np.uint32))
            submit_labels(campaign, store, lease, "ann", labels, Work("test", 1.0))
        store.close()
    return campaign


def add_generation(campaign: Campaign, number: int, others: Arrays | None = None) -> None:
    """Write a generation whose mask is perfect, and what else its model says."""
    outputs = [OUTPUTS[name] for name in others or {}]
    write_maps(campaign, number, probability_of(BLOCKS > 0), np.zeros(SHAPE), others=others, outputs=outputs)
    write_model(campaign, number)
    snapshot, trained = campaign.generation(number).snapshot(), Box((0, 50, 0), (16, 10, 40))
    assert snapshot is not None
    item = snapshot.items[0].model_copy(update={"box": trained, "read_box": trained})
    campaign.generation(number).write(SNAPSHOT, snapshot.model_copy(update={"items": (item,)}))


def scores(evaluation: Evaluation, part: str) -> dict[str, float]:
    flat = flat_scores(evaluation, ("block",))
    return {name: round(flat[f"{part}_{name}"], 3) for name in ("ap50", "pq", "vi")}


MERGED = {"ap50": 0.0, "pq": 0.0, "vi": 1.0}
"""Of bars that stay one object: half of it is no match of either block, and which of two a voxel is in is one bit."""


@pytest.mark.parametrize("annotated", [False, True], ids=["truth of the volume", "people annotated the boxes"])
def test_what_the_model_says_parts_what_the_mask_does_not(tmp_path: Path, annotated: bool) -> None:
    campaign = make_campaign(tmp_path, annotated=annotated)
    flow = flow_to_middles(BLOCKS, 0.0, np.random.default_rng(0))
    for number, others in enumerate((None, {"border_distance": border_distance()}, {"flow": flow})):
        add_generation(campaign, number, others)
    mask, distance, flow_made = (evaluate_generation(campaign, g, choose_scored_objects) for g in range(3))

    assert mask.objects is not None
    assert mask.objects.rule == ObjectRule(source="pieces")
    pieces = score_boxes(assignment := check_evaluation(campaign, 0), stored_maps(campaign.generation(0), assignment))
    assert mask.boxes == pieces.boxes, "pieces are what they were"
    for part in ("validation", "test"):
        assert scores(mask, part) == MERGED
        for made, source in ((distance, "border_distance"), (flow_made, "flow")):
            assert made.objects is not None
            assert (made.objects.rule.source, made.objects.class_index) == (source, 1)
            assert scores(made, part) == {"ap50": 1.0, "pq": 1.0, "vi": 0.0}
    assert all(b.details[0].ceiling == pieces.boxes[0].details[0].instances for b in distance.boxes), (
        "as a perfect mask"
    )
    assert {e.format for e in (mask, distance, flow_made)} == {FORMAT}
    assert [(b.counts, b.calibration) for b in distance.boxes] == [(b.counts, b.calibration) for b in mask.boxes]


@pytest.mark.parametrize("annotated", [False, True], ids=["truth of the volume", "people annotated the boxes"])
def test_polyhedra_are_drawn_at_the_peaks(tmp_path: Path, annotated: bool) -> None:
    pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
    campaign = make_campaign(tmp_path, annotated=annotated)
    add_generation(campaign, 0, star_maps())
    found = evaluate_generation(campaign, 0, choose_scored_objects)
    assert found.objects is not None
    assert found.objects.rule.source == "rays"
    assert [box.details[0].instances.matched for box in found.boxes] == [(2, 2)] * 4  # type: ignore[union-attr]
    assert scores(found, "test")["pq"] > 0.9, "faces between rays leave some voxels at the edges to the neighbour"


def test_an_object_whose_middle_lies_beyond_the_box_is_made_as_a_delivery_makes_it(tmp_path: Path) -> None:
    """People annotated boxes that cut each second block behind its middle; its polyhedron is seen in the margin alone."""
    pytest.importorskip("stardist", reason="the extra 'stardist' is not installed")
    cut = [replace_box(b, Box((0, 0, b.box.offset_zyx[2]), (16, 40, 2 + 20 + 8))) for b in BOXES]
    campaign = make_campaign(tmp_path, annotated=True, boxes=cut)
    add_generation(campaign, 0, star_maps())
    assignment = check_evaluation(campaign, 0)
    assert assignment.region(cut[1]) == assignment.truth.context(cut[1]) == cut[1].box, "nothing else is read of a mask"
    chosen = assignment.with_objects(campaign, choose_scored_objects)
    assert chosen.region(cut[1]) == Box((0, 0, WIDTH - 16), (16, 56, 30 + 32))
    found = score_boxes(chosen, stored_maps(campaign.generation(0), chosen))
    assert [box.details[0].instances.matched for box in found.boxes] == [(2, 2)] * 4  # type: ignore[union-attr]


def replace_box(held: HoldoutBox, box: Box) -> HoldoutBox:
    return held.model_copy(update={"box": box})


def test_without_numbered_truth_nothing_is_read_or_written_otherwise(tmp_path: Path) -> None:
    campaign = make_class_campaign(tmp_path)
    write_model(campaign, 0)
    model = campaign.generation(0).model()
    assert model is not None
    assignment = assign(campaign, model, holdout_truth(campaign))
    assert choose_scored_objects(campaign, assignment) is None, "there are no maps that it could read"
    write_generation(campaign, 0, 1.2)
    evaluation = evaluate_generation(campaign, 0, choose_scored_objects)
    assert evaluation.complete
    written = evaluation.to_json()
    assert written["format"] == FORMAT_WITHOUT_OBJECTS == 4
    assert "objects" not in written
    assert Evaluation.model_validate(written).to_json() == written


def test_scores_of_pieces_by_an_earlier_version_are_made_anew_and_it_is_said(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    add_generation(campaign, 0, {"border_distance": border_distance()})
    assignment = check_evaluation(campaign, 0)
    pieces = score_boxes(assignment, stored_maps(campaign.generation(0), assignment))
    earlier = pieces.model_copy(update={"format": FORMAT_WITHOUT_OBJECTS})
    campaign.generation(0).write(EVALUATION, judge(campaign.generations(), earlier, campaign.config))
    assert not earlier.complete
    assert stored_evaluation(campaign, 0) is None
    said: list[str] = []
    anew = current_evaluation(campaign, 0, choose_scored_objects, say=said.append)
    assert said == [
        "Generation 0 is scored anew: an earlier version took the connected pieces of the mask for objects, whatever the "
        "model says"
    ]
    assert scores(anew, "test")["pq"] == 1.0
    assert current_evaluation(campaign, 0, lambda *_: pytest.fail("chosen again")) == anew


def test_a_grown_holdout_is_chosen_on_anew(tmp_path: Path) -> None:
    """Of the first validation box the model says nothing but the mask; of the one that came later it says all."""
    campaign = make_campaign(tmp_path, boxes=BOXES[:2])
    distance = border_distance()
    distance[..., WIDTH : 2 * WIDTH] = 0
    add_generation(campaign, 0, {"border_distance": distance})
    first = evaluate_generation(campaign, 0, choose_scored_objects)
    assert first.objects is not None
    assert first.objects.rule.source == "pieces"
    judgement = judge(campaign.generations(), first, campaign.config)
    campaign.generation(0).write(EVALUATION, judgement)
    frozen = campaign.holdout()
    assert frozen is not None
    campaign.storage.write_json("holdout.json", frozen.model_copy(update={"boxes": BOXES}).to_json())
    anew = evaluation_on_grown(Campaign.open(campaign.url), judgement, choose_scored_objects)
    assert len(anew.boxes) == 4
    assert anew.objects is not None
    assert anew.objects.rule.source == "border_distance"
    assert campaign.generation(0).read(SCORES) == anew


def test_it_is_said_how_far_the_choice_is(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    add_generation(campaign, 0, {"border_distance": border_distance()})
    seen: list[tuple[str, int, int]] = []
    choose_scored_objects(campaign, check_evaluation(campaign, 0), progress=lambda *counts: seen.append(counts))
    reading, trying = "validation boxes read", "ways to make objects tried on validation boxes"
    assert [(what, done) for what, done, _ in seen if what == reading] == [(reading, 1), (reading, 2)]
    tried = [(done, total) for what, done, total in seen if what == trying]
    assert [done for done, _ in tried] == list(range(1, 2 * 22 + 1))
    assert {total for _, total in tried} == {2 * 22}


def test_pages_and_commands_say_which_objects_are_scored(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    for number, others in enumerate((None, {"border_distance": border_distance()})):
        add_generation(campaign, number, others)
        evaluation = evaluate_generation(campaign, number, choose_scored_objects)
        campaign.generation(number).write(EVALUATION, judge(campaign.generations(), evaluation, campaign.config))
    rule = evaluation.objects.rule.in_words  # type: ignore[union-attr]
    assert rule.startswith("basins of the model's border distance, ")
    assert " µm deep" in rule
    note = "Chosen on the validation boxes as a delivery chooses, so that there the scores of objects are a little too good"

    compared = CliRunner().invoke(app, ["compare", campaign.url, "0", "1"])
    assert compared.exit_code == 0, compared.output
    both = f"Objects: generation 0{{}}: connected pieces; generation 1{{}}: {rule}. {note}"
    assert both.format(" (monai_unet)", " (monai_unet)") in compared.output.replace("\n", " ").replace("  ", " ")
    page = Path(campaign.url, "reports/compare_0000_0001.html").read_text()
    assert unescaped(page).count(both.format("", "")) == 2, "with the boxes of either part"

    evaluated = CliRunner().invoke(app, ["evaluate", campaign.url, "--generation", "1"])
    assert f"Objects: {rule}. {note}" in evaluated.output.replace("\n", " ").replace("  ", " ")
    assert f"Objects: {rule}. {note}" in unescaped(Path(campaign.url, "reports/evaluation_0001.html").read_text())
    report = unescaped(Path(campaign.url, write_report(campaign).path).read_text())
    assert f"Objects: {rule}. {note}" in report
    assert both.format("", "") in report
    assert campaign.generation(1).require(EVALUATION).evaluation.objects == evaluation.objects


def unescaped(page: str) -> str:
    return page.replace("&#39;", "'")


def test_objects_are_made_of_the_class_of_the_maker_alone(tmp_path: Path) -> None:
    """Those of another class are connected pieces."""
    campaign = make_campaign(tmp_path)
    add_generation(campaign, 0, {"border_distance": border_distance()})
    assignment = check_evaluation(campaign, 0)
    made = assignment.with_objects(campaign, choose_scored_objects)
    assert made.maker is not None
    other = replace(made, maker=replace(made.maker, class_index=2))
    one, two = (score_boxes(a, stored_maps(campaign.generation(0), a)) for a in (made, other))
    assert scores(one, "test")["pq"] == 1.0
    assert scores(two, "test") == MERGED
