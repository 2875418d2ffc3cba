"""A route's trainer is the first that is there and can learn from what the campaign annotates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rescueseg.models.registry import OWN
from rescueseg.triage.advice import _about_the_trainer
from rescueseg.triage.trainer_choice import PickedTrainer, pick_trainer
from rescueseg.triage.tree import ROUTES


def let(monkeypatch: pytest.MonkeyPatch, **needs: tuple[str, ...]) -> None:
    """Let trainers need other modules than they do."""
    changed = {name: replace(OWN[name], needs=modules) for name, modules in needs.items()}
    monkeypatch.setattr("rescueseg.models.registry.OWN", {**OWN, **changed})


def test_where_objects_are_numbered_the_shape_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    let(monkeypatch, stardist=(), cellpose=())
    assert pick_trainer(ROUTES["star_convex"], numbered=True) == PickedTrainer(
        ("stardist", "cellpose", "nnunet", "monai_unet")
    )
    assert pick_trainer(ROUTES["blob"], numbered=True) == PickedTrainer(("cellpose", "nnunet", "monai_unet"))
    assert pick_trainer(ROUTES["low_snr"], numbered=True) == PickedTrainer(("nnunet", "monai_unet"))


def test_where_none_are_numbered_it_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    let(monkeypatch, stardist=(), cellpose=())
    picked = pick_trainer(ROUTES["star_convex"], numbered=False)
    assert picked == PickedTrainer(("nnunet", "monai_unet"), need_objects=("stardist", "cellpose"))
    line, _ = _about_the_trainer(picked)
    assert line == (
        "stardist and cellpose would come first and learn from numbered objects: "
        "make the campaign with annotation.labels=instance."
    )


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    let(monkeypatch, stardist=("not_there",), cellpose=())
    picked = pick_trainer(ROUTES["star_convex"], numbered=True)
    assert picked == PickedTrainer(("cellpose", "nnunet", "monai_unet"), missing=("stardist",))
    assert _about_the_trainer(picked) == [
        "stardist would come first and is not installed: cellpose is the next best.",
        "Unless training.trainer names one, cellpose and nnunet train on the first patches for equal time, and the validation "
        "boxes choose.",
    ]
