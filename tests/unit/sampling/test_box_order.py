"""Which boxes are validation and which test, and which are asked for first."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rescueseg.geometry import Box
from rescueseg.records import HoldoutBox, Part
from rescueseg.sampling.box_order import asked_at_once, in_both_parts

DOMAINS = {"a": "x", "b": "x", "c": "y", "d": "z"}
PARTS: tuple[Part, ...] = ("validation", "test")
DRAWN = st.lists(st.sampled_from("abcd"), max_size=20)


def boxes_of(volumes: Sequence[str], start: int = 0) -> list[HoldoutBox]:
    """Boxes of these volumes side by side, by turns validation and test."""
    return [
        HoldoutBox(
            volume_id=name, box=Box((start + i, 0, 0), (1, 1, 1)), part=PARTS[i % 2], stratum=("dense", "sparse")[i // 2 % 2]
        )
        for i, name in enumerate(volumes)
    ]  # fmt: skip


def of_part(boxes: Sequence[HoldoutBox], part: Part) -> list[HoldoutBox]:
    return [box for box in boxes if box.part == part]


@given(drawn=DRAWN, earlier=DRAWN, known=st.sets(st.sampled_from("abcd")), count=st.integers(0, 6))
def test_each_domain_then_each_volume_is_asked_for_first(
    drawn: list[str], earlier: list[str], known: set[str], count: int
) -> None:
    boxes, before = boxes_of(drawn), boxes_of(earlier, 100)
    asked, later = asked_at_once(boxes, count, known, DOMAINS, before)
    assert asked == [box for box in boxes if box in asked], "as drawn"
    assert sorted(asked + later, key=boxes.index) == boxes
    assert not any(box.volume_id in known for box in later)
    for part in PARTS:
        first = [box for box in of_part(asked, part) if box.volume_id not in known]
        put_off = of_part(later, part)
        assert len(first) == min(count, len(first) + len(put_off))
        counting = of_part(asked, part) + of_part(before, part)
        for key in (lambda box: DOMAINS[box.volume_id], lambda box: box.volume_id):
            missing = {key(box) for box in put_off} - {key(box) for box in counting}
            if missing:  # then no box was spent on a second one of the same
                others = [key(box) for box in counting if box not in first]
                assert len({key(box) for box in first} - set(others)) == len(first)
                assert [key(box) for box in put_off][: len(missing)] == list(dict.fromkeys(map(key, put_off)))[
                    : len(missing)
                ]


@given(drawn=st.lists(st.just("a"), max_size=20), count=st.integers(0, 6))
def test_one_volume_is_asked_for_as_drawn(drawn: list[str], count: int) -> None:
    boxes = boxes_of(drawn)
    assert in_both_parts(boxes, DOMAINS) == boxes
    assert asked_at_once(boxes, count, (), DOMAINS) == (boxes[: 2 * count], boxes[2 * count :])


@given(drawn=DRAWN, frozen=DRAWN)
def test_a_domain_is_in_both_parts_where_its_boxes_allow(drawn: list[str], frozen: list[str]) -> None:
    boxes, before = boxes_of(drawn), boxes_of(frozen, 100)
    swapped = in_both_parts(boxes, DOMAINS, before)
    assert [(b.patch, b.stratum) for b in swapped] == [(b.patch, b.stratum) for b in boxes]

    def domains(some: Sequence[HoldoutBox], part: Part) -> list[str]:
        return [DOMAINS[box.volume_id] for box in of_part([*some, *before], part)]

    both, was = ({d for d in "xyz" if all(d in domains(s, p) for p in PARTS)} for s in (swapped, boxes))
    assert was <= both
    for part, other in (PARTS, PARTS[::-1]):
        assert len(of_part(swapped, part)) == len(of_part(boxes, part))
        for domain in {DOMAINS[box.volume_id] for box in of_part(swapped, part)} - both:
            if domains(swapped, part).count(domain) >= 2:
                given_up = [DOMAINS[b.volume_id] for b in of_part(swapped, other)]
                assert all(domains(swapped, other).count(d) == 1 and d in both for d in given_up)
