from __future__ import annotations

from rescueseg.randomness import random_generator


def test_the_same_keys_give_the_same_numbers_and_others_give_others() -> None:
    first = random_generator(1, "query", 0).integers(2**60)
    assert first == random_generator(1, "query", 0).integers(2**60)
    assert first not in (
        random_generator(*keys).integers(2**60) for keys in [(1, "query", 1), (1, "query"), (2, "query", 0)]
    )


def test_the_numbers_stay_the_same_between_versions() -> None:
    """A campaign begun with an older version must draw the same patches when it is rerun."""
    assert random_generator(0, "holdout").integers(1000, size=4).tolist() == [324, 354, 135, 865]
