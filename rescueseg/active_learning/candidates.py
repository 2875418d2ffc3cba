"""Patch scores of a whole campaign: the maps of a generation streamed block by block into one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rescueseg.active_learning.acquisition import class_entropy
from rescueseg.campaign import GenerationFolder
from rescueseg.errors import InferenceError
from rescueseg.geometry import Box, Floats, Integers, box_bounds, zyx
from rescueseg.inference.box_means import SCORES, box_sums, map_pieces, touching
from rescueseg.inference.maps import VolumeMaps
from rescueseg.progress import CountProgress
from rescueseg.shared_places import SharedPlaces


@dataclass(frozen=True)
class CandidateTable:
    """Candidate patches and their scores; every array has one row per candidate.

    Parameters
    ----------
    volume_ids : tuple of str
        Volume of each candidate.
    boxes : tuple of Box
        Box of each candidate.
    scores : dict of str to ndarray of float64, shape (n,)
        Box mean of each map in `SCORES`, and of others that were asked for; entropies in nats.
    class_entropy : ndarray of float64, shape (n, K)
        Box mean of predictive entropy times mean probability, by foreground class.
    foreground : ndarray of float64, shape (n,)
        Box mean of the predicted foreground probability, p_1 + … + p_K.
    places : SharedPlaces
        Which places of the volumes are the same: no batch holds one twice.
    """

    volume_ids: tuple[str, ...]
    boxes: tuple[Box, ...]
    scores: dict[str, Floats]
    class_entropy: Floats
    foreground: Floats
    places: SharedPlaces

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.boxes)


def score_candidates(
    generation: GenerationFolder,
    boxes: Mapping[str, Sequence[Box]],
    n_classes: int,
    places: SharedPlaces,
    progress: CountProgress | None = None,
    further: Sequence[str] = (),
) -> CandidateTable:
    """Score candidate boxes by the maps of a generation, reading each block of the maps once.

    Parameters
    ----------
    generation : GenerationFolder
        With complete maps of each volume.
    boxes : mapping of str to sequence of Box
        Candidates of each volume, inside it; they may overlap.
    n_classes : int
        Foreground classes of the campaign.
    places : SharedPlaces
        Which places of the volumes are the same.
    progress : callable, optional
        Called with the blocks done and the blocks in all.
    further : sequence of str
        Maps beside `SCORES` whose box means are scores, too: what the query strategy needs (`strategies.needed_maps`).

    Returns
    -------
    CandidateTable
        Candidates by volume id, those of a volume in the order of `boxes`. Blocks are read in a fixed order: the same
        maps give the same scores to the last bit.

    Raises
    ------
    InferenceError
        If the maps of a volume are not complete, lack a further one, or hold values that are not finite.
    """
    names = (*SCORES, *further)
    volumes = [v for v in sorted(boxes) if boxes[v]]
    stored = {volume_id: VolumeMaps(generation, volume_id) for volume_id in volumes}
    opened = {volume_id: maps.open_several((*names, "probability")) for volume_id, maps in stored.items()}
    blocks = {v: map_pieces(maps, zyx(opened[v][SCORES[0]].chunks)) for v, maps in stored.items()}
    done_count, total = 0, sum(map(len, blocks.values()))
    rows: list[Floats] = []
    for volume_id in volumes:
        maps = opened[volume_id]
        sums: Floats | None = None
        starts, stops = box_bounds(boxes[volume_id])
        for block in blocks[volume_id]:
            part = _block_sums(maps, names, block, starts, stops, volume_id)
            sums = part if sums is None else sums + part
            done_count += 1
            if progress is not None:
                progress(done_count, total)
        assert sums is not None, "a volume has at least one block"
        rows.append(sums / np.prod(stops - starts, axis=1)[:, None])
    columns = len(names) + 1 + n_classes
    table = np.concatenate(rows) if rows else np.zeros((0, columns))
    return CandidateTable(
        volume_ids=tuple(v for v in volumes for _ in boxes[v]),
        boxes=tuple(box for v in volumes for box in boxes[v]),
        scores={name: table[:, i] for i, name in enumerate(names)},
        foreground=table[:, len(names)],
        class_entropy=table[:, len(names) + 1 :],
        places=places,
    )


def _block_sums(
    maps: Mapping[str, Any], names: Sequence[str], block: Box, starts: Integers, stops: Integers, volume_id: str
) -> Floats:
    """Return the sums of one block: a column per name, foreground, then one per foreground class."""
    n_classes = maps["probability"].shape[0] - 1
    sums = np.zeros((len(starts), len(names) + 1 + n_classes), dtype=np.float64)
    index = touching(block, starts, stops)
    if not len(index):
        return sums
    for column, image in enumerate(_images(maps, names, block)):
        if not np.isfinite(image).all():
            raise InferenceError(
                f"the maps hold values that are not finite in {block}",
                where=f"volume {volume_id}",
                todo="Delete the generation's maps and run its inference again",
            )
        sums[index, column] = box_sums(image, block.offset_zyx, starts[index], stops[index])
    return sums


def _images(maps: Mapping[str, Any], names: Sequence[str], block: Box) -> Iterator[npt.NDArray[np.float32]]:
    """Yield what each column averages over, one image at a time."""
    entropy = np.asarray(maps["predictive_entropy"][block.slices], dtype=np.float32)
    yield entropy
    for name in names[1:]:
        yield np.asarray(maps[name][block.slices], dtype=np.float32)
    classes = np.asarray(maps["probability"][(slice(1, None), *block.slices)])
    yield classes.sum(axis=0, dtype=np.float32)  # 1 − p_0 in float16 is 0 where they are small
    for channel in classes:
        yield class_entropy(entropy, channel)
