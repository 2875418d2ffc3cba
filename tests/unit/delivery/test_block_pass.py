import pickle
from pathlib import Path

import numpy as np

from rescueseg.delivery.block_pass import Arrays, BlockPass
from rescueseg.geometry import Box


def note(folder: str, box: Box) -> Arrays:
    with Path(folder, "calls").open("a") as file:
        file.write(f"{box}\n")
    return {"offset": np.asarray(box.offset_zyx)}


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    block_pass = BlockPass(str(tmp_path / "pass"), "a", (4, 5, 6), (2, 5, 3))
    block_pass.run(note, str(tmp_path))
    assert [tuple(r["offset"].tolist()) for r in block_pass.results()] == [b.offset_zyx for b in block_pass.blocks]
    assert len(block_pass.blocks) == calls(tmp_path) == 4

    (tmp_path / "pass" / "000001.npz").unlink()
    cut = tmp_path / "pass" / "000002.npz"
    cut.write_bytes(cut.read_bytes()[:40])
    BlockPass(block_pass.url, "a", (4, 5, 6), (2, 5, 3)).run(note, str(tmp_path))
    assert calls(tmp_path) == 6

    BlockPass(block_pass.url, "b", (4, 5, 6), (2, 5, 3)).run(note, str(tmp_path))
    assert calls(tmp_path) == 10
    assert block_pass.result(0) is None


def test_progress_counts_blocks_that_were_done_before(tmp_path: Path) -> None:
    block_pass, seen = BlockPass(str(tmp_path / "pass"), "a", (4, 4, 4), (2, 4, 4)), list[tuple[int, int]]()
    block_pass.run(note, str(tmp_path), progress=lambda *counts: seen.append(counts))
    block_pass.run(note, str(tmp_path), progress=lambda *counts: seen.append(counts))
    assert seen == [(0, 2), (1, 2), (2, 2), (2, 2)]


def test_what_goes_to_a_worker_does_not_grow_with_the_blocks(tmp_path: Path) -> None:
    many = BlockPass(str(tmp_path), "d", (1024, 1024, 2048), (64, 64, 64))
    before = len(pickle.dumps(many))
    assert len(many.blocks) == 16 * 16 * 32
    sent = pickle.dumps(many)
    assert len(sent) == before < 1000
    assert pickle.loads(sent) == many
    assert pickle.loads(sent).blocks == many.blocks
