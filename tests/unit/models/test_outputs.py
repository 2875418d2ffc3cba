"""What a model may say of a voxel, and how it turns back with its directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rescueseg.models.members import Symmetry, symmetries
from rescueseg.models.predictor import AXES, Output, class_probabilities

FLOW = Output(name="flow", channels=3, kind="flow", directions=AXES)
CROSS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
RAYS = Output(name="rays", channels=6, kind="distance", directions=CROSS)
HALF = Output(name="rays", channels=3, kind="distance", directions=CROSS[::2])
BORDER = Output(name="border", channels=1, kind="distance")


def gradient(image: np.ndarray) -> np.ndarray:
    return np.stack(np.gradient(image))


def fall(image: np.ndarray) -> np.ndarray:
    return np.stack([np.maximum(-sign * along, 0) for along in gradient(image) for sign in (1, -1)])


@pytest.mark.parametrize("symmetry", symmetries(16, square=True))
@pytest.mark.parametrize(("output", "look"), [(FLOW, gradient), (RAYS, fall)])
def test_what_is_seen_in_a_turned_image_turns_back_to_what_is_seen(symmetry: Symmetry, output: Output, look) -> None:
    image = np.random.default_rng(0).normal(size=(5, 7, 7)).astype(np.float32)
    turned = symmetry.apply(torch.from_numpy(image)[None, None])[0, 0].numpy()
    found = symmetry.invert(torch.from_numpy(look(turned))[None], output)[0].numpy()
    np.testing.assert_allclose(found, look(image), atol=1e-6)


@pytest.mark.parametrize("output", [class_probabilities(2), BORDER])
def test_what_has_no_direction_stays_in_its_channels(output: Output) -> None:
    values = torch.randn(1, output.channels, 4, 6, 6)
    for symmetry in symmetries(16, square=True):
        assert torch.equal(symmetry.invert(symmetry.apply(values), output), values)


def test_symmetries_that_an_output_does_not_have_are_left_out() -> None:
    assert [s.flipped_axes for s in symmetries(16, True, [HALF])] == [(), ()]
    assert len(symmetries(16, True, [FLOW, RAYS, BORDER])) == 16
    with pytest.raises(ValueError, match=r"'rays' has no channel along"):
        Symmetry(False, (4,)).held_by(HALF)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "flow"},
        {"kind": "flow", "directions": AXES[:2]},
        {"kind": "distance", "directions": AXES[:2]},
        {"kind": "probability", "directions": AXES},
        {"kind": "distance", "name": "../rays"},
        {"kind": "rays"},
    ],
)
def test_an_output_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Output.model_validate({"name": "x", "channels": 3, **wrong})


def test_outputs_are_written_as_earlier_versions_wrote_them() -> None:
    border = Output(name="border_distance", channels=1, kind="distance")
    assert border.to_json() == {"name": "border_distance", "channels": 1, "kind": "distance", "directions": []}
    rays = Output(name="rays", channels=1, kind="share", at_peaks_of="border_distance", sampled=False)
    assert Output.model_validate(rays.to_json()) == rays
