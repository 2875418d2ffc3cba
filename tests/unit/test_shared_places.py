from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import CampaignError
from rescueseg.geometry import ZYX, Box, Patch
from rescueseg.records import Holdout
from rescueseg.shared_places import IDENTITY, GridMap, SharedPlaces

SOURCE = (9, 10, 11)
Cut = tuple[Box, tuple[int, int, int], tuple[int, int, int]]


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Draw a crop of the source, with an exchange of its axes and a sign for each."""
    offset = [draw(st.integers(0, n - 3)) for n in SOURCE]
    box = Box(tuple(offset), tuple(draw(st.integers(3, n - o)) for n, o in zip(SOURCE, offset, strict=True)))
    return box, draw(st.permutations([0, 1, 2]).map(tuple)), draw(st.tuples(*[st.sampled_from((1, -1))] * 3))


def cut_out(cut: Cut) -> np.ndarray:
    """Return the numbers of the source's voxels in a crop, axes exchanged and mirrored."""
    box, axes, signs = cut
    numbers = np.arange(np.prod(SOURCE)).reshape(SOURCE)[box.slices].transpose(axes)
    return numbers[tuple(slice(None, None, s) for s in signs)]


def map_to_source(cut: Cut) -> GridMap:
    """Return where a crop lies in the source."""
    box, axes, signs = cut
    own = [axes.index(a) for a in range(3)]
    steps = [float(signs[i]) for i in own]
    start = [float(o if s > 0 else o + n) for o, n, s in zip(box.offset_zyx, box.shape_zyx, steps, strict=True)]
    return GridMap(tuple(own), tuple(steps), tuple(start))


@settings(deadline=None)
@given(cuts(), cuts(), st.data())
def test_a_box_lies_where_its_voxels_do(one: Cut, other: Cut, data: st.DataObject) -> None:
    """By brute force, between two crops that are only known to lie in a third."""
    seen, looked = cut_out(one), cut_out(other)
    places = SharedPlaces(
        {"source": SOURCE, "one": seen.shape, "other": looked.shape},
        [("source", "one", map_to_source(one)), ("other", "source", map_to_source(other).inverse())],
    )
    offset = [data.draw(st.integers(0, n - 1)) for n in seen.shape]
    box = Box(tuple(offset), tuple(data.draw(st.integers(1, n - o)) for n, o in zip(seen.shape, offset, strict=True)))
    expected = np.isin(looked, seen[box.slices])
    found = np.zeros(looked.shape, bool)
    boxes = places.boxes_in("other", [Patch("one", box)])
    for there in boxes:
        found[there.slices] = True
    np.testing.assert_array_equal(found, expected)
    assert len(boxes) == expected.any()
    assert places.boxes_in("one", [Patch("one", box)]) == [box]


def test_a_margin_counts_in_both_volumes_and_reaches_over_the_border() -> None:
    binned = GridMap((0, 1, 2), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    places = SharedPlaces({"fine": (40, 40, 40), "coarse": (20, 20, 20)}, [("fine", "coarse", binned)])
    patch = Patch("coarse", Box((5, 5, 5), (2, 2, 2)))
    assert [str(b) for b in places.boxes_in("fine", [patch])] == ["[10:14, 10:14, 10:14]"]
    assert [str(b) for b in places.boxes_in("fine", [patch], (3, 3, 3))] == ["[4:20, 4:20, 4:20]"]
    patch = Patch("fine", Box((11, 11, 11), (1, 1, 1)))
    assert [str(b) for b in places.boxes_in("coarse", [patch])] == ["[5:6, 5:6, 5:6]"]
    beside = SharedPlaces(
        {"left": (8, 8, 8), "right": (8, 8, 8)}, [("left", "right", GridMap((0, 1, 2), (1, 1, 1), (0, 0, 7)))]
    )
    patch = Patch("left", Box((0, 0, 4), (8, 8, 3)))
    assert beside.boxes_in("right", [patch]) == []
    assert [str(b) for b in beside.boxes_in("right", [patch], (1, 1, 2))] == ["[0:8, 0:8, 0:2]"]


def test_the_tolerance_adds_up_and_the_exact_way_is_preferred() -> None:
    near = GridMap((0, 1, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1))
    shapes = dict.fromkeys("abc", (20, 20, 20))
    patch = Patch("a", Box((8, 8, 8), (2, 2, 2)))
    through = SharedPlaces(shapes, [("a", "b", near), ("b", "c", near)])
    assert [str(b) for b in through.boxes_in("c", [patch])] == ["[6:12, 6:12, 6:12]"]
    exact = SharedPlaces(shapes, [("a", "b", near), ("b", "c", near), ("a", "c", IDENTITY)])
    assert exact.boxes_in("c", [patch]) == [patch.box]


def test_a_tile_that_a_file_holds_twice_lies_there_twice() -> None:
    first, second = (GridMap((0, 1, 2), (1, 1, 1), (0, 0, x)) for x in (0.0, 16.0))
    places = SharedPlaces({"file": (8, 8, 32), "tile": (8, 8, 16)}, [("file", "tile", first), ("file", "tile", second)])
    patch = Patch("tile", Box((0, 0, 4), (8, 8, 2)))
    assert [str(b) for b in places.boxes_in("file", [patch])] == ["[0:8, 0:8, 4:6]", "[0:8, 0:8, 20:22]"]
    assert [b.offset_zyx[2] for b in places.boxes_in("tile", [patch])] == [4]


def test_a_thin_overlap_says_nothing_of_what_lies_beyond_it() -> None:
    """One plane that three specimens have in common by accident, and a copy of the first."""
    shapes = dict.fromkeys(("one", "two", "three", "copy"), (16, 8, 8))
    plane = GridMap((0, 1, 2), (1, 1, 1), (15, 0, 0))  # the last plane of one is the first of the other
    places = SharedPlaces(shapes, [("one", "two", plane), ("three", "two", plane), ("one", "copy", IDENTITY)])
    whole, last = Patch("one", Box((0, 0, 0), (16, 8, 8))), Box((15, 0, 0), (1, 8, 8))
    assert places.boxes_in("three", [whole]) == [last]
    assert places.boxes_in("two", [whole]) == [Box((0, 0, 0), (1, 8, 8))]
    assert places.boxes_in("two", [Patch("copy", whole.box)]) == [Box((0, 0, 0), (1, 8, 8))]
    assert places.boxes_in("copy", [whole]) == [whole.box]
    assert places.boxes_in("three", [Patch("one", Box((0, 0, 0), (15, 8, 8)))]) == []
    groups = places.groups()
    assert groups["one"] == groups["copy"] != groups["three"] != groups["two"]


def test_a_volume_that_lies_in_another_in_too_many_ways_shares_all_of_it() -> None:
    grids = [GridMap((0, 1, 2), (1, 1, 1), (0, 0, 8.0 * i)) for i in range(12)]
    shapes: dict[str, ZYX] = {"periodic": (8, 8, 96), "tile": (8, 8, 8)}
    places = SharedPlaces(shapes, [("periodic", "tile", grid) for grid in grids])
    patch = Patch("tile", Box((0, 0, 0), (2, 2, 2)))
    assert places.boxes_in("periodic", [patch]) == [Box((0, 0, 0), (8, 8, 96))]
    assert places.boxes_in("tile", [patch]) == [patch.box]


def test_a_volume_held_out_whole_whose_record_is_gone_is_named() -> None:
    holdout = Holdout(boxes=(), guard_zyx=(1, 1, 1), whole=("gone",))
    with pytest.raises(CampaignError, match="the volume 'gone' is held out whole, and its record is gone"):
        holdout.of("a", SharedPlaces({"a": (8, 8, 8)}))
