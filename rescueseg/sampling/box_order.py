"""Which holdout boxes are validation and which test boxes, and which of them people are asked for first.

A holdout that is asked for by and by would leave out a whole domain for generations if boxes came as they were drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rescueseg.records import HoldoutBox, Part


def asked_order(
    boxes: Sequence[HoldoutBox], domains: Mapping[str, str], earlier: Sequence[HoldoutBox] = ()
) -> list[int]:
    """Return in which order the boxes of one part are asked for: one of each domain, one of each volume, then the others.

    Parameters
    ----------
    boxes : sequence of HoldoutBox
        In the order of drawing, which is kept within each of the three.
    domains : mapping of str to str
        Domain of each volume; one that is not named is a domain of its own.
    earlier : sequence of HoldoutBox
        Boxes of the part that count already: their domains and volumes come last.

    Returns
    -------
    list of int
        Indices into `boxes`, each once.

    Examples
    --------
    >>> from rescueseg.geometry import Box
    >>> drawn = [HoldoutBox(volume_id=v, box=Box((0, 0, 0), (1, 1, 1)), part="test", stratum="dense") for v in "aaabc"]
    >>> asked_order(drawn, {"a": "tem", "b": "tem", "c": "sem"})
    [0, 4, 3, 1, 2]
    """
    volumes = {box.volume_id for box in earlier}
    known = {domains.get(volume, volume) for volume in volumes}
    groups: tuple[list[int], list[int], list[int]] = [], [], []
    for index, box in enumerate(boxes):
        domain = domains.get(box.volume_id, box.volume_id)
        groups[0 if domain not in known else 1 if box.volume_id not in volumes else 2].append(index)
        volumes.add(box.volume_id)
        known.add(domain)
    return [index for group in groups for index in group]


def asked_at_once(
    boxes: Sequence[HoldoutBox],
    count: int,
    with_truth: Collection[str],
    domains: Mapping[str, str],
    earlier: Sequence[HoldoutBox] = (),
) -> tuple[list[HoldoutBox], list[HoldoutBox]]:
    """Return the boxes that count or are asked for at once, as drawn, and the later ones, in the order of `asked_order`.

    Parameters
    ----------
    boxes : sequence of HoldoutBox
        Of both parts, in the order of drawing.
    count : int
        Boxes of each part that people are asked to annotate at once.
    with_truth : collection of str
        Volumes that came with truth: nobody is asked, their boxes all count at once.
    domains : mapping of str to str
        Domain of each volume.
    earlier : sequence of HoldoutBox
        Boxes of both parts that count already.
    """
    rank = {box.patch: -1 for box in boxes if box.volume_id in with_truth}
    for part in ("validation", "test"):
        waiting = [box for box in boxes if box.part == part and box.volume_id not in with_truth]
        known = [box for box in boxes if box.part == part and box.volume_id in with_truth]
        order = asked_order(waiting, domains, [*known, *(box for box in earlier if box.part == part)])
        rank |= {waiting[index].patch: place for place, index in enumerate(order)}
    later = [box for box in boxes if rank[box.patch] >= count]
    return [box for box in boxes if rank[box.patch] < count], sorted(later, key=lambda box: rank[box.patch])


def in_both_parts(
    boxes: Sequence[HoldoutBox], domains: Mapping[str, str], frozen: Sequence[HoldoutBox] = ()
) -> list[HoldoutBox]:
    """Exchange parts between boxes, so that a domain with two boxes or more is in both parts.

    Each exchange is between boxes of two domains, of the same stratum and drawn one soon after the other where there is a
    choice; no domain leaves a part that it shared with the other part. A part keeps its number of boxes.

    Parameters
    ----------
    boxes : sequence of HoldoutBox
        In the order of drawing.
    domains : mapping of str to str
        Domain of each volume; one that is not named is a domain of its own.
    frozen : sequence of HoldoutBox
        Boxes drawn earlier: they count, and stay as they are.

    Returns
    -------
    list of HoldoutBox
        The same boxes in the same order.

    Examples
    --------
    >>> from rescueseg.geometry import Box
    >>> drawn = [
    ...     HoldoutBox(volume_id=v, box=Box((0, 0, 0), (1, 1, 1)), part=p, stratum="dense")
    ...     for v, p in [("a", "validation"), ("b", "test"), ("a", "validation"), ("b", "test")]
    ... ]
    >>> [box.part for box in in_both_parts(drawn, {})]
    ['test', 'validation', 'validation', 'test']
    """
    names = [domains.get(box.volume_id, box.volume_id) for box in boxes]
    parts: list[Part] = [box.part for box in boxes]
    count = Counter((domains.get(b.volume_id, b.volume_id), b.part) for b in frozen)
    count.update(zip(names, parts, strict=True))

    def other(part: Part) -> Part:
        return "test" if part == "validation" else "validation"

    def may_leave(domain: str, part: Part) -> bool:
        """Tell whether a domain is in as many parts as before without one of its boxes in this part."""
        return count[domain, part] >= 2 or not count[domain, other(part)]

    for domain in dict.fromkeys(names):
        mine = [i for i, name in enumerate(names) if name == domain]
        part = parts[mine[0]]
        if count[domain, part] < 2 or count[domain, other(part)]:
            continue
        pairs = [
            (boxes[i].stratum != boxes[j].stratum, abs(i - j), i, j)
            for i in mine
            for j, name in enumerate(names)
            if name != domain and parts[j] != part and may_leave(name, parts[j])
        ]
        if pairs:
            _, _, i, j = min(pairs)
            count.subtract([(domain, part), (names[j], parts[j])])
            parts[i], parts[j] = parts[j], parts[i]
            count.update([(domain, parts[i]), (names[j], parts[j])])
    return [
        box if box.part == part else box.model_copy(update={"part": part})
        for box, part in zip(boxes, parts, strict=True)
    ]
