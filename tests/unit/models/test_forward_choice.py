"""Which way of the forward pass is chosen: by what was measured here, for jobs that are long enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rescueseg.models import forward_choice, members
from rescueseg.models.forward_speed import Measured, Speed, Subject, Work, read_speed, store_speed
from rescueseg.models.predictor import forward_of
from tests.forward_rig import (
    alone_in_float32,
    make_nnunet,
    make_unet,
    warnings_in,
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    alone_in_float32(monkeypatch, tmp_path_factory)
    yield
    members._warn_once.cache_clear()


def measured(features: float, setup: float = 0.0, eager: float = 1.0) -> Measured:
    """Return what takes so many seconds per window, and half as many per sample."""
    speeds = (Speed(features=s, head=s / 2) for s in (features, eager))
    return Measured(setup_seconds=setup, speed=next(speeds), eager=next(speeds))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measured | str]:
    """Stand in for the clock: what a way takes, or why it fails. An eager pass takes a second, and a sample half a one."""
    told: dict[str, Measured | str] = {"channels_last": measured(0.5), "compiled": measured(0.25, setup=7.0)}

    def measure(name: str, _: Subject) -> Measured:
        figure = told[name]
        if isinstance(figure, str):
            raise forward_choice.UnfitError(figure)
        return figure

    monkeypatch.setattr(forward_choice, "measure", measure)
    monkeypatch.setattr(forward_choice, "measure_speed", lambda *_: Speed(features=1.0, head=0.5))
    monkeypatch.setattr(forward_choice, "set_up", lambda name, subject: forward_choice.Ready(subject.networks, 1))
    return told


def test_few_windows_are_not_worth_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_choice, "measure_speed", lambda *_: pytest.fail("measured"))
    assert make_unet("auto", networks=1).choose_forward(3) == "eager"


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_where_nothing_can_be_measured_the_pass_is_eager(device: str, caplog: pytest.LogCaptureFixture) -> None:
    predictor = make_unet("auto")
    predictor._device = torch.device(device)
    assert predictor.choose_forward(10**6) == "eager"
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("windows", "workers", "name"),
    [
        (6, 1, "eager"),  # 36 images
        (7, 1, "channels_last"),  # 84 s, 42 with channels-last: compiling takes 45
        (7, 20, "channels_last"),
        (40, 1, "compiled"),  # 480 s, 240 with channels-last, 127 compiled
        (40, 2, "channels_last"),  # 120 s with channels-last: less than four times 45
    ],
)
def test_a_way_is_tried_once_the_job_is_long_enough_to_gain_from_it(
    figures: dict[str, Measured | str], windows: int, workers: int, name: str
) -> None:
    assert make_unet("auto").choose_forward(windows, workers) == name


def test_a_slow_way_and_one_that_fails_are_not_chosen(
    figures: dict[str, Measured | str], caplog: pytest.LogCaptureFixture
) -> None:
    figures |= {"channels_last": measured(0.96), "compiled": "an odd layer"}
    predictor = make_unet("auto")
    assert [predictor.choose_forward(400) for _ in range(2)] == ["eager", "eager"]
    assert warnings_in(caplog) == [
        "the forward pass is not computed by 'compiled', which may take longer: an odd layer"
    ]


def test_what_was_measured_holds_for_later_jobs_and_counts_what_it_takes_to_set_up(
    figures: dict[str, Measured | str],
) -> None:
    assert make_unet("auto").choose_forward(400) == "compiled"
    figures |= {"channels_last": "measured again", "compiled": "measured again"}
    assert make_unet("auto").choose_forward(8) == "compiled"  # 24 + 7 s, not 48
    assert make_unet("auto").choose_forward(8, workers=4) == "channels_last"  # 12 s, not 6 + 7
    assert make_unet("auto", dropout=0.0).choose_forward(8) == "eager"


def test_the_first_to_measure_wins_and_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    file, first, second = tmp_path / "new" / "way.json", measured(0.5), measured(0.25)
    assert store_speed(file, first) == first
    assert store_speed(file, second) == first
    assert [path.name for path in file.parent.iterdir()] == ["way.json"]
    assert read_speed(file) == first
    file.write_text("{")
    assert read_speed(file) is None
    assert store_speed(tmp_path / "new" / "way.json" / "not-a-folder", second) == second


def test_a_way_that_a_person_names_is_kept_or_the_next_one_that_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_unet("channels_last").choose_forward(1) == "channels_last"
    assert make_unet("eager").choose_forward(10**6) == "eager"
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_unet("compiled").choose_forward(1) == "channels_last"
    assert ["no C++ compiler" in line for line in warnings_in(caplog)] == [True]


def test_a_real_measurement_is_stored_and_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESCUESEG_CACHE", str(tmp_path))
    monkeypatch.setattr(forward_choice, "_COMPILING_SECONDS", float("inf"))
    name = make_nnunet("auto").choose_forward(10_000)
    [file] = (tmp_path / "forward").iterdir()
    stored = Measured.model_validate_json(file.read_bytes())
    work = Work(images=10_000 * 2 * 3, samples=2)
    ratio = stored.speed.seconds(work) / stored.eager.seconds(work)
    assert ratio > 0
    if abs(ratio - 0.95) > 0.05:
        assert (name == "channels_last") == (ratio < 0.95)


def test_a_predictor_of_another_family_knows_the_eager_pass_alone() -> None:
    assert forward_of(object(), 10**6, 1) == "eager"
