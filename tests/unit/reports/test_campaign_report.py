"""The report page and its figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rescueseg.annotation.hand_in import submit_labels
from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import QUERY, GenerationEffort, QueryResult
from rescueseg.delivery.scored_objects import choose_scored_objects
from rescueseg.errors import EvaluationError
from rescueseg.evaluation.champion import EVALUATION, Comparison, Judgement, headline, judge, judgements
from rescueseg.evaluation.holdout_scores import check_evaluation, evaluate_generation
from rescueseg.evaluation.metrics import Counts
from rescueseg.evaluation.scores import Evaluation
from rescueseg.evaluation.stored_scores import store_scores
from rescueseg.evaluation.truth import holdout_boxes, holdout_truth
from rescueseg.geometry import Box
from rescueseg.queue.effort import effort_by
from rescueseg.queue.records import NewTicket
from rescueseg.queue.store import open_queue
from rescueseg.queue.submission import Work
from rescueseg.reports.campaign_report import effort_by_generation, explain_box, rests_on_one_box, write_report
from rescueseg.reports.gallery import BoxPictures
from rescueseg.stages.publish import effort_metrics
from rescueseg.stages.tickets import stop_decision
from tests.evaluated_campaign import make_campaign, phantom_truth, write_generation, write_volume_maps

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Return a campaign of two generations."""
    campaign = make_campaign(tmp_path_factory.mktemp("reported"))
    for generation, noise in enumerate((2.4, 1.2)):
        write_generation(campaign, generation, noise)
    return campaign


class Page(HTMLParser):
    """Collects what a page would fetch, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attrs if k == "src" or (k == "href" and tag != "a")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_answers_first(evaluated: Campaign) -> None:
    report = write_report(evaluated, [("MLflow", "http://127.0.0.1:1/#/experiments/1")])
    html = Path(evaluated.storage.path(report.path)).read_text()
    page = Page(html)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    words = re.sub(r"\s+", " ", page.words)
    assert "Yes: generation 1 is better than generation 0" in words
    assert words.index("Yes: generation 1") < words.index("All generations")
    test = judgements(evaluated.generations())[1].evaluation.test
    assert test is not None
    assert f"{test.dice:.3f}" in words
    assert "best threshold" in words
    assert set(report.figures) == {
        "learning_curve.png",
        "uncertainty_against_error.png",
        "worst_1.png",
        "worst_2.png",
        "worst_3.png",
        "uncertain_1.png",
        "uncertain_2.png",
        "uncertain_3.png",
    }
    assert all(data.startswith(PNG) for data in report.figures.values())


def test_writing_twice_gives_the_same_page(evaluated: Campaign) -> None:
    first = write_report(evaluated).figures
    assert write_report(evaluated).figures == first


def test_the_page_says_what_the_temperature_does(evaluated: Campaign) -> None:
    store_scores(evaluated, check_evaluation(evaluated, 1), choose_scored_objects)
    path = write_report(evaluated).path
    words = re.sub(r"\s+", " ", Page(Path(evaluated.storage.path(path)).read_text()).words)
    assert re.search(
        r"Temperature \d\.\d+, fitted on the validation boxes: validation calibration error 0\.\d+ → 0\.", words
    )


def test_names_cannot_inject_html(evaluated: Campaign) -> None:
    write_report(evaluated, [("<script>alert(1)</script>", "http://x/?a=1&b=<b>")])
    html = Path(evaluated.storage.path("reports/report.html")).read_text()
    assert "<script>" not in html


def test_the_worst_patch_is_drawn_in_three_planes(evaluated: Campaign) -> None:
    import io

    from PIL import Image

    judgement = judgements(evaluated.generations())[0]
    score = judgement.evaluation.worst(1)[0]
    draw = BoxPictures(evaluated.volumes, evaluated.config.n_classes)
    drawn = draw.worst(evaluated.generation(0), score, holdout_truth(evaluated))
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))
    orange, blue = np.array([0xE6, 0x9F, 0x00]), np.array([0x00, 0x72, 0xB2])
    near = [(np.abs(pixels.astype(int) - colour).sum(axis=-1) < 90).sum() for colour in (orange, blue)]
    assert sum(near) > 100
    assert "wrong" not in explain_box(score) or score.errors == 0


def test_nothing_judged_is_a_clear_error(campaign: Campaign) -> None:
    with pytest.raises(EvaluationError, match="nothing to report"):
        write_report(campaign)


@pytest.mark.parametrize(("verdict", "begins"), [("better", "Yes"), ("worse", "No"), ("undecided", "Undecided")])
def test_headline(evaluated: Campaign, verdict: str, begins: str) -> None:
    first, second = judgements(evaluated.generations())
    assert headline(first).startswith("Generation 0 is the first")
    assert second.comparison is not None
    comparison = Comparison.model_validate(second.comparison.to_json() | {"verdict": verdict})
    assert headline(Judgement.model_validate(second.to_json() | {"comparison": comparison})).startswith(begins)


def test_a_score_that_rests_on_one_box_says_so(evaluated: Campaign) -> None:
    evaluation = evaluated.generation(0).require(EVALUATION).evaluation

    def holding(voxels: list[int]) -> Evaluation:
        boxes = [
            b.model_copy(update={"part": "test", "counts": (Counts(tp=n, fp=7, fn=0),)})
            for n, b in zip(voxels, evaluation.boxes, strict=False)
        ]
        return evaluation.model_copy(update={"boxes": tuple(boxes)})

    assert rests_on_one_box(holding([0, 0, 97, 3])) == "97 % of the structure in them lies in one of the 4 boxes"
    assert rests_on_one_box(holding([10, 20, 20, 0])) == rests_on_one_box(holding([9])) == ""
    assert rests_on_one_box(holding([0, 0, 0])) == "", "where there is nothing, nothing is said"


def test_test_boxes_that_hold_nothing_have_no_dice(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, truth=False)
    truth = np.zeros_like(phantom_truth())
    store = open_queue(campaign)
    for i, held in enumerate(holdout_boxes(campaign.holdout(), campaign.volumes.records(refused=True), campaign.url)):
        if held.part == "validation":
            truth[held.box.slices] = phantom_truth()[held.box.slices]
        store.tickets.add([NewTicket(ticket_id=f"h{i:02d}", volume_id="phantom", box=held.box, purpose=held.part)])
    while (lease := store.leases.claim("ann", 60)) is not None:
        submit_labels(campaign, store, lease, "ann", truth[lease.ticket.box.slices], Work("test", 1.0))
    store.close()
    for generation in (0, 1):
        write_volume_maps(campaign, generation, truth > 0)
        judged = judge(
            campaign.generations(), evaluate_generation(campaign, generation, choose_scored_objects), campaign.config
        )
        campaign.generation(generation).write(EVALUATION, judged)
        campaign.generation(generation).write(
            QUERY, QueryResult(strategy="random", candidates=3, patches=(), uncertainty=None)
        )
    last = judgements(campaign.generations())[1]
    assert last.evaluation.test is not None
    assert (last.evaluation.test.dice, last.champion) == (None, 0)
    assert last.comparison is not None
    assert last.comparison.verdict == "undecided"
    assert stop_decision(campaign.generation(1), campaign.config.stopping) == ""
    report = write_report(campaign)
    words = re.sub(r"\s+", " ", Page(campaign.storage.read_bytes(report.path).decode()).words)
    assert "On the test boxes, which never decide anything: nothing is there, and nothing was found" in words
    assert "Dice 1.000" not in words.split("All generations")[0]


def test_efforts_count_what_people_did(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    store = open_queue(campaign)
    tickets = [
        NewTicket(ticket_id=f"q{i}", volume_id="phantom", box=Box((0, 0, 8 * i), (4, 4, 4)), generation=i // 2)
        for i in range(3)
    ]
    store.tickets.add([*tickets, tickets[0].model_copy(update={"ticket_id": "h", "purpose": "test"})])
    for annotator in ("ann", "bob", "ann", "ann"):
        lease = store.leases.claim(annotator, 60)
        assert lease is not None
        submit_labels(campaign, store, lease, annotator, np.ones((4, 4, 4), np.uint8), Work("test", 30.0))
    holdout, first, second = effort_by_generation(store.views.accepted(purpose=None))
    assert (holdout.label, holdout.patches, holdout.minutes) == ("holdout boxes", 1, 0.5)
    assert (first.label, first.patches, first.voxels, first.voxels_corrected) == ("generation 0", 2, 128, 128)
    assert (first.annotators, first.corrected_share, second.patches) == (2, 1.0, 1)
    ann, bob = effort_by(store.views.efforts(), lambda work: work.annotator)
    store.close()
    assert (ann.label, ann.patches, ann.minutes, ann.accepted) == ("ann", 3, 1.5, 3)
    assert (bob.label, bob.minutes_per_patch, bob.voxels_corrected) == ("bob", 0.5, 64)


def test_effort_goes_to_mlflow_in_all_and_by_person() -> None:
    spent = {"annotation_seconds": 90.0, "voxels_corrected": 7}
    people = {"anna": spent, "bob (lab)": {**spent, "annotation_seconds": 0.0}}
    assert effort_metrics(GenerationEffort.model_validate({**spent, "annotators": people})) == {
        "annotation_minutes": 1.5,
        "annotators": 2.0,
        "annotator_minutes/anna": 1.5,
        "annotator_voxels_corrected/anna": 7.0,
        "annotator_minutes/bob _lab_": 0.0,
        "annotator_voxels_corrected/bob _lab_": 7.0,
    }
