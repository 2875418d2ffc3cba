"""`rescueseg evaluate` and `rescueseg compare`: what they print, write and leave alone; the scan; the galleries."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.evaluation.champion import EVALUATION, judgements
from rescueseg.evaluation.pooled import group_scores
from rescueseg.evaluation.stored_scores import SCORES, current_evaluation
from rescueseg.evaluation.uncertain_boxes import most_apart, most_uncertain, non_overlapping
from rescueseg.geometry import Box, zyx
from rescueseg.reports.campaign_report import write_report
from rescueseg.reports.evaluation_pages import write_evaluation_page
from rescueseg.reports.gallery import BoxPictures, errors, round_length
from rescueseg.shared_places import IDENTITY, SharedPlaces
from tests.choices import refused_choice
from tests.evaluated_campaign import SHAPE, make_campaign, phantom_truth, write_generation, write_maps


@pytest.fixture(scope="module")
def two_families(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Return a campaign of two generations of different model families."""
    campaign = make_campaign(tmp_path_factory.mktemp("judged"))
    write_generation(campaign, 0, 2.4)
    write_generation(campaign, 1, 1.2, trainer="nnunet")
    return campaign


def run(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_dry_run_checks_and_changes_nothing(two_families: Campaign) -> None:
    root = Path(two_families.storage.path(""))
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    done = run("evaluate", two_families.url, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "Generation 1 (nnunet): 8 validation, 8 test boxes, 73,728 voxels" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before


def test_evaluate_writes_scores_and_page_and_leaves_the_judgement(two_families: Campaign, tmp_path: Path) -> None:
    judged = two_families.generation(0).require(EVALUATION)
    done = run("evaluate", two_families.url, "--generation", "0", "--json", tmp_path / "scores.json")
    assert done.exit_code == 0, done.stderr
    assert two_families.generation(0).require(EVALUATION) == judged
    assert two_families.generation(0).require(SCORES) == judgements(two_families.generations())[0].evaluation
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["generation"], scores["model"]) == (0, "monai_unet")
    groups = {(g["part"], g["kind"], g["name"]): g for g in scores["groups"]}
    assert set(groups) == {(p, k, n) for p in ("test", "validation") for k, n in
                           (("all", ""), ("stratum", "dense"), ("stratum", "typical"))}  # fmt: skip
    test = judged.evaluation.test
    assert test is not None
    whole = groups["test", "all", ""]
    assert whole["scores"]["dice"]["value"] == pytest.approx(test.dice)
    assert re.search(rf"Dice ↑ +{test.dice:.3f} +– +8", done.stdout), "three of the boxes hold the class: no interval"
    shown = run("evaluate", two_families.url, "--generation", "0", "--part", "validation").stdout
    assert judged.evaluation.validation is not None
    assert re.search(rf"Dice ↑ +{judged.evaluation.validation.dice:.3f} +\d\.\d+ to \d\.\d+ +8", shown)
    page = Path(two_families.storage.path("reports/evaluation_0000.html")).read_text()
    assert page.count("data:image/png;base64,") == 3 + 3 + 1


def test_compare_sets_two_families_against_each_other(two_families: Campaign, tmp_path: Path) -> None:
    done = run("compare", two_families.url, 0, 1, "--json", tmp_path / "differences.json")
    assert done.exit_code == 0, done.stderr
    assert "Generation 1 (nnunet) is better than generation 0 (monai_unet): validation Dice +" in done.stdout
    data = json.loads((tmp_path / "differences.json").read_text())
    assert (data["generations"], data["models"]) == ([0, 1], ["monai_unet", "nnunet"])
    first, second = (j.evaluation.validation for j in judgements(two_families.generations()))
    assert first is not None
    assert second is not None
    dice = data["groups"][0]["differences"]["dice"]
    assert dice["difference"] == pytest.approx(second.dice - first.dice)
    assert dice["interval"][0] <= dice["difference"] <= dice["interval"][1]
    assert {(g["part"], g["name"]) for g in data["groups"]} >= {("validation", ""), ("test", "typical")}
    page = Path(two_families.storage.path("reports/compare_0000_0001.html")).read_text()
    assert page.count("data:image/png;base64,") == 1 + 3
    assert "monai_unet" in page


def test_the_verdict_is_the_judgements_whichever_boxes_are_shown(two_families: Campaign, tmp_path: Path) -> None:
    """One question has one answer: that of the judgement, in the terminal, in the file, and on both pages."""
    judged = two_families.generation(1).require(EVALUATION).comparison
    assert judged is not None
    for part in ("validation", "test"):
        done = run("compare", two_families.url, 0, 1, "--part", part, "--json", tmp_path / "d.json")
        assert judged.reason in " ".join(done.stdout.split())
        assert json.loads((tmp_path / "d.json").read_text())["comparison"] == judged.to_json()
        page = Path(two_families.storage.path("reports/compare_0000_0001.html")).read_text()
        assert judged.reason[1:] in page
        assert page.index("Validation boxes: every score") < page.index("Test boxes: every score")
    assert judged.reason[1:] in Path(two_families.storage.path(write_report(two_families).path)).read_text()
    back = run("compare", two_families.url, 1, 0)
    assert "Generation 0 (monai_unet) is worse than generation 1 (nnunet)" in " ".join(back.stdout.split())


def test_a_comparison_can_be_rehearsed(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 2.4)
    write_generation(campaign, 1, 1.2, judged=False, trainer="nnunet")
    root = Path(campaign.storage.path(""))
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    done = run("compare", campaign.url, 0, 1, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "Generation 0 (monai_unet): evaluated already" in done.stdout
    assert "Generation 1 (nnunet): to be evaluated first, on 16 boxes" in done.stdout
    assert "Boxes in common: 8 validation, 8 test" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before


def test_a_comparison_stores_scores_and_leaves_the_temperature_alone(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    for generation, noise in enumerate((2.4, 1.2)):
        write_generation(campaign, generation, noise)
        assert run("evaluate", campaign.url, "--generation", generation).exit_code == 0
    volume = campaign.volumes.record("phantom")
    campaign.volumes.save(volume.model_copy(update={"files": ""}))  # so that its files may be altered
    truth = zarr.open_array(f"{campaign.volumes.image_url('phantom')}/labels/truth/0", mode="r+")
    truth[:4] = 1 - truth[:4]

    def stored() -> dict[str, bytes]:
        root = Path(campaign.url, "generations")
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    before = stored()
    done = run("compare", campaign.url, 0, 1)
    assert done.exit_code == 0, done.output
    after = stored()
    assert {name for name in after if after[name] != before.get(name)} == {"0000/scores.json", "0001/scores.json"}
    assert "0000/calibration.json" in after
    shown = run("evaluate", campaign.url, "--generation", 0).stdout
    assert "for another model or truth" in shown, "the temperature that people have seen is replaced with a word"
    assert stored()["0000/calibration.json"] != before["0000/calibration.json"]


def test_test_boxes_are_shown_on_demand(two_families: Campaign) -> None:
    assert "8 validation boxes" in run("compare", two_families.url, 0, 1).stdout
    assert "8 test boxes" in run("compare", two_families.url, 0, 1, "--part", "test").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["compare", "{}", 1, 1], "both generations are the same"),
        (["compare", "{}", 0, 7], "generation 7 has no model"),
        (["evaluate", "{}", "--generation", 7], "generation 7 has no model"),
    ],
)
def test_what_cannot_be_is_one_line(two_families: Campaign, arguments: list[object], complaint: str) -> None:
    done = run(*(str(a).replace("{}", two_families.url) for a in arguments))
    assert done.exit_code == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["evaluate", "{}"], ["compare", "{}", "0", "1"]])
def test_a_part_that_is_none_is_refused_with_the_ones_there_are(two_families: Campaign, command: list[str]) -> None:
    said = refused_choice(run(*(a.replace("{}", two_families.url) for a in command), "--part", "training"))
    assert "Invalid value for '--part'" in said
    assert "'training' is not one of 'validation', 'test'" in said


def test_before_the_first_champion_a_generation_must_be_named(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 1.0, judged=False)
    done = run("evaluate", campaign.url, "--dry-run")
    assert done.exit_code == 1
    assert "no champion yet" in done.stderr
    assert run("evaluate", campaign.url, "--generation", 0, "--dry-run").exit_code == 0


def test_what_was_kept_is_used_until_model_or_truth_change(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 1.0)
    calls: list[int] = []

    def count(done: int, total: int) -> None:
        calls.append(done)

    first = current_evaluation(campaign, 0, choose_scored_objects, count)
    assert calls == []
    judged, scored = (file.path(campaign.generation(0).path()) for file in (EVALUATION, SCORES))
    old = campaign.storage.read_json(judged)
    for box in old["evaluation"]["boxes"]:
        box["details"] = []
    campaign.storage.write_json(judged, old)  # as an older version wrote it
    assert current_evaluation(campaign, 0, choose_scored_objects, count) == first
    assert len(calls) == 16
    assert current_evaluation(campaign, 0, choose_scored_objects, count) == first
    assert len(calls) == 16
    said: list[str] = []
    stale = campaign.storage.read_json(scored)
    campaign.storage.write_json(scored, {k: v for k, v in stale.items() if k != "format"})  # scored otherwise
    campaign.storage.write_json(judged, {**old, "evaluation": {**old["evaluation"], "format": 3}})
    assert current_evaluation(campaign, 0, choose_scored_objects, count, said.append) == first
    assert said == [
        "Generation 0 is scored anew: an earlier version counted objects, outlines and empty boxes otherwise"
    ]
    assert len(calls) == 32
    stale["boxes"][3]["truth_digest"] = "older"
    campaign.storage.write_json(scored, stale)
    assert current_evaluation(campaign, 0, choose_scored_objects, count, said.append) == first
    assert len(said) == 1, "another truth is no other way to count"
    assert len(calls) == 48
    holdout = campaign.holdout()
    assert holdout is not None
    grown = holdout.boxes[0].model_copy(update={"box": Box((12, 60, 30), (8, 24, 24))})
    campaign.freeze_holdout(holdout.model_copy(update={"boxes": (*holdout.boxes, grown)}))
    assert current_evaluation(campaign, 0, choose_scored_objects, count) == first
    assert len(calls) == 48, "generations are compared on the boxes they share"


def test_old_scores_whose_maps_are_gone_are_refused(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    for generation in (0, 1):
        write_generation(campaign, generation, 1.0)
    old = campaign.generation(0).require(EVALUATION)
    older = old.model_copy(update={"evaluation": old.evaluation.model_copy(update={"format": 1})})
    campaign.generation(0).write(EVALUATION, older)
    campaign.storage.remove(campaign.generation(0).path("maps", "phantom.json"))
    done = run("compare", campaign.url, 0, 1)
    assert done.exit_code == 1
    assert "Run the inference of that generation" in done.stderr


def write_entropy(campaign: Campaign, entropy: np.ndarray, block: tuple[int, int, int]) -> None:
    truth = phantom_truth()
    campaign.storage.remove(
        campaign.generation(0).path("maps", "phantom.inference.json")
    )  # other blocks are other maps
    write_maps(campaign, 0, np.stack([truth == 0, truth == 1]).astype(float), entropy, block=block)


def test_the_scan_finds_what_is_planted_and_nobody_annotated(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    write_generation(campaign, 0, 1.0, judged=False)
    entropy = np.full(SHAPE, 0.01)
    planted = Box((12, 62, 62), (10, 12, 12))
    entropy[planted.slices] = 0.6
    entropy[TEST_BOX.slices] = 0.69  # held out: people annotate it
    entropy[0:8, 0:8, 86:96] = 0.69  # trained on
    write_entropy(campaign, entropy, SHAPE)
    found = most_uncertain(campaign, 0, 5)
    assert found[0].box.intersects(planted)
    assert found[0].entropy > 5 * found[0].typical
    boxes = [place.box for place in found]
    holdout, snapshot = campaign.holdout(), campaign.generation(0).snapshot()
    assert holdout is not None
    assert snapshot is not None
    known = [*holdout.of("phantom", campaign.volumes.shared_places()), *(item.box for item in snapshot.items)]
    assert not any(box.intersects(other) for box in boxes for other in known)
    assert not any(a.intersects(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [place.entropy for place in found] == sorted((place.entropy for place in found), reverse=True)
    write_entropy(campaign, entropy, (7, 40, 33))
    again = most_uncertain(campaign, 0, 5)
    assert [place.box for place in again] == boxes, "it does not depend on the blocks"
    assert [place.entropy for place in again] == pytest.approx([place.entropy for place in found])


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_the_highest_that_do_not_overlap_are_those_of_going_down_the_list(seed: int, count: int) -> None:
    rng, shape = np.random.default_rng(seed), (3, 4, 5)
    starts = np.unique(rng.integers(0, 12, (40, 3)), axis=0)
    values = rng.integers(0, 9, len(starts)) / 9
    taken: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        if len(taken) < count and not any(
            Box(zyx(starts[i]), shape).intersects(Box(zyx(starts[j]), shape)) for j in taken
        ):
            taken.append(int(i))
    assert non_overlapping(values, starts, shape, count) == taken


def test_the_page_tells_how_far_it_is_with_the_maps(two_families: Campaign) -> None:
    told: list[tuple[str, int, int]] = []
    evaluation = current_evaluation(two_families, 0, choose_scored_objects)
    groups = {"test": group_scores(evaluation, "test", ("organelle",))}
    write_evaluation_page(two_families, evaluation, groups, lambda *now: told.append(now))  # type: ignore[arg-type]
    assert told[-1] == ("phantom: uncertainty map", 1, 1)


TEST_BOX = Box((0, 0, 30), (8, 24, 24))


def test_a_place_without_truth_is_drawn(two_families: Campaign) -> None:
    from PIL import Image

    place = most_uncertain(two_families, 1, 1)[0]
    pixels = np.asarray(
        Image.open(
            io.BytesIO(BoxPictures(two_families.volumes, 1).uncertain(two_families.generation(1), place))
        ).convert("RGB")
    )
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_errors_leave_out_what_nobody_knows() -> None:
    truth = np.array([[[0, 0, 1, 1, 2, 255]]], np.uint8)
    prediction = np.array([[[0, 1, 1, 0, 1, 1]]], np.uint8)
    assert errors(prediction, truth).tolist() == [[[0, 2, 0, 1, 1, 0]]]


@pytest.mark.parametrize(("longest", "length"), [(0.3, 0.2), (1.0, 1.0), (4.9, 2.0), (50.0, 50.0), (0.07, 0.05)])
def test_scale_bars_have_round_lengths(longest: float, length: float) -> None:
    assert round_length(longest) == pytest.approx(length)


def test_as_many_boxes_are_found_as_there_are_when_copies_take_some_away() -> None:
    starts = np.array([[0, 0, 0], [0, 0, 8], [0, 0, 16]])
    grids = [
        ("a", np.array([0.9, 0.8, 0.1]), starts, (8, 8, 8)),
        ("b", np.array([1.0]), starts[:1] + np.array([0, 0, 4]), (8, 8, 8)),
    ]
    places = SharedPlaces({"a": (8, 8, 24), "b": (8, 8, 24)}, [("a", "b", IDENTITY)])
    found = most_apart(grids, 2, places)
    assert [(p.volume_id, p.box.offset_zyx[2], value) for p, value in found.items()] == [("b", 4, 1.0), ("a", 16, 0.1)]
    assert len(most_apart(grids, 9, places)) == 2
