"""One question has one answer: in the terminal, in the report, in the comparison and in MLflow."""

from __future__ import annotations

import html
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli.main import app
from rescueseg.evaluation.answer import answer, last_answer
from rescueseg.evaluation.champion import EVALUATION, headline
from rescueseg.evaluation.learning_curve import advise
from rescueseg.reports.campaign_report import write_report
from rescueseg.tracking.models import RegisteredModel
from rescueseg.tracking.tracker import Tracker
from tests.evaluated_campaign import make_campaign, write_generation


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Return a campaign of two generations, the second of which is better."""
    campaign = make_campaign(tmp_path_factory.mktemp("answered"))
    write_generation(campaign, 0, 2.4)
    write_generation(campaign, 1, 1.2, trainer="nnunet")
    return campaign


def words(text: str) -> str:
    return " ".join(html.unescape(text).split())


def test_report_terminal_comparison_and_mlflow_say_the_same(evaluated: Campaign) -> None:
    judged = evaluated.generation(1).require(EVALUATION)
    assert judged.comparison is not None
    said = answer(evaluated, judged)
    assert said == last_answer(evaluated)
    assert said.headline == headline(judged)
    assert "equal models would differ as much in 0.4 % of cases" in said.figures
    assert said.advice == f"{advise(evaluated)}."
    assert said.advice.endswith("Go on.")

    page = words(Path(evaluated.storage.path(write_report(evaluated).path)).read_text())
    status = words(CliRunner().invoke(app, ["status", evaluated.url]).stdout)
    tracker = Tracker(evaluated)
    model = evaluated.generation(1).model()
    assert model is not None
    Path(evaluated.storage.path(model.path)).mkdir(exist_ok=True)
    stored = tracker.log_model("generation-1", model, tracker.runs.generation_run(1))
    tracker.log_judgement(judged, RegisteredModel(name="none", version="1", model_id=stored))
    run = tracker.runs.client.get_run(tracker.runs.generation_run(1))
    note = words(run.data.tags["mlflow.note.content"])
    for sentence in said:
        assert sentence in page
        assert sentence in status
        assert sentence in note
    name = "validation_dice_gain_over_champion"
    assert judged.comparison.interval is not None
    low, high = judged.comparison.interval
    logged = [run.data.metrics[f"{name}{end}"] for end in ("", "_low", "_high", "_p")]
    assert logged == pytest.approx([judged.comparison.difference, low, high, 1 / 256])

    compared = words(CliRunner().invoke(app, ["compare", evaluated.url, "0", "1"]).stdout)
    assert judged.comparison.reason in compared
    assert advise(evaluated) in compared


def test_the_first_generation_has_no_figures(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    assert last_answer(campaign) is None
    write_generation(campaign, 0, 1.2)
    said = last_answer(campaign)
    assert said is not None
    assert said.lines() == [
        "Generation 0 is the first; it is champion until a later one beats it.",
        "Too early to tell what another batch would bring: 1 generation, 5 are needed, each with a "
        "Dice and more patches. Go on.",
    ]
