from __future__ import annotations

from rescueseg.randomness import keyed_generator, random_generator, window_key


def test_the_same_keys_give_the_same_numbers_and_others_give_others() -> None:
    first = random_generator(1, "query", 0).integers(2**60)
    assert first == random_generator(1, "query", 0).integers(2**60)
    assert first not in (
        random_generator(*keys).integers(2**60) for keys in [(1, "query", 1), (1, "query"), (2, "query", 0)]
    )


def test_the_numbers_stay_the_same_between_versions() -> None:
    """A campaign begun with an older version must draw the same patches when it is rerun."""
    assert random_generator(0, "holdout").integers(1000, size=4).tolist() == [324, 354, 135, 865]
    assert keyed_generator(7, "windows", 0).integers(100, size=3).tolist() == [44, 10, 6]


def test_window_keys_stay_the_same_between_versions_and_are_distinct() -> None:
    """The maps of a generation must not change when it is inferred again."""
    assert [window_key(0, "stack", 0), window_key(5, "v", 0)] == [572847468554575151, 4397112176118879811]
    keys = {window_key(seed, volume, index) for seed in (0, 1) for volume in "ab" for index in range(100)}
    assert len(keys) == 400
    assert all(0 <= key < 2**63 for key in keys)
