from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.geometry import Box, partition
from rescueseg.volumes.subsample import sample_boxes

LENGTHS = st.integers(1, 40)
SHAPES = st.tuples(LENGTHS, LENGTHS, LENGTHS)
CHUNKS = st.tuples(st.integers(4, 16), st.integers(4, 16), st.integers(4, 16))


@settings(deadline=None)
@given(SHAPES, CHUNKS, st.integers(1, 20_000))
def test_a_sample_is_bounded_made_of_chunks_and_the_same_every_time(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], voxels: int
) -> None:
    boxes = sample_boxes(shape, chunk, voxels, "a", 1)
    assert boxes == sample_boxes(shape, chunk, voxels, "a", 1)
    assert set(boxes) <= set(partition(shape, chunk))
    assert len(set(boxes)) == len(boxes) >= 1
    assert len(boxes) == 1 or sum(box.size for box in boxes) <= voxels or boxes == partition(shape, chunk)


@settings(deadline=None)
@given(SHAPES, CHUNKS, st.integers(1, 20_000))
def test_layers_take_turns(shape: tuple[int, int, int], chunk: tuple[int, int, int], voxels: int) -> None:
    counts = dict.fromkeys(range(0, shape[0], chunk[0]), 0)
    for box in sample_boxes(shape, chunk, voxels):
        counts[box.offset_zyx[0]] += 1
    full = math.ceil(shape[1] / chunk[1]) * math.ceil(shape[2] / chunk[2])
    assert max(counts.values()) - min(counts.values()) <= 1 or max(counts.values()) == full


def test_another_purpose_gives_other_chunks_and_a_small_volume_is_taken_whole() -> None:
    assert sample_boxes((64, 512, 512), (8, 32, 32), 200_000, "a") != sample_boxes(
        (64, 512, 512), (8, 32, 32), 200_000, "b"
    )
    assert sample_boxes((5, 6, 7), (64, 64, 64), 10) == [Box((0, 0, 0), (5, 6, 7))]
