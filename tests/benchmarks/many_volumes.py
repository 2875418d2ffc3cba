"""Evaluation, query and `status` on a campaign of many small volumes: seconds and file operations, of two versions.

    python tests/benchmarks/many_volumes.py OUT [--volumes 25 50 100] [--before CHECKOUT] [--repeats 3] [--files]

Makes a campaign of phantoms of 16×48×48 voxels with truth, once for each number of volumes: as many holdout boxes, patches
accepted from the simulated annotator, a U-Net of two steps, and the maps of all volumes. With `--before` the code of that
checkout makes it, so that both versions open it; without, an import compares each volume with all others, which for 100
takes a quarter of an hour. Each measurement is a fresh process on a fresh copy, by turns of the
versions; the least of the repeats counts. Seconds begin after the imports. File operations are counted in a run of their own by
strace, below the campaign's folder only: files opened, looked up (stat, readlink, access), folders listed, others
(written, renamed, removed). `--files` prints which files are opened how often.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
VOLUME = (16, 48, 48)
BOX = [8, 16, 16]
GUARD = [1, 2, 2]
KINDS = ("opened", "looked up", "listed", "others")
BEGIN, END = "/many-volumes/begin", "/many-volumes/end"
"""Paths that are looked up, and are not there, before and after what is measured."""
CALL = re.compile(r"^\d+\s+(\w+)\((.*)")
LOOKS = {"stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat"}
OPENS = {"open", "openat", "openat2"}


@dataclass(frozen=True)
class Cost:
    """What one operation took: seconds, of them busy, of the imports before it, and file operations by kind."""

    seconds: float
    busy: float
    imports: float
    operations: Mapping[str, int]
    files: Mapping[str, int]


# what runs in a process of its own, with the code of either version --------------------------------------------------


def make(folder: Path, count: int) -> None:
    """Make a campaign whose generation 0 has its maps."""
    import tifffile

    from rescueseg.campaign import Campaign
    from rescueseg.cli.main import app
    from rescueseg.config import check_config
    from rescueseg.queue.store import open_queue
    from rescueseg.simulation.annotator import SimulatedAnnotator
    from rescueseg.stages import due, infer, snapshot, tickets, train
    from rescueseg.volumes.phantom import make_phantom

    config = check_config(
        {
            "name": "many",
            "classes": ["organelle"],
            "holdout": {
                "validation_boxes": -(-count // 2),
                "test_boxes": count // 2,
                "box_zyx": BOX,
                "guard_zyx": GUARD,
            },
            "sampling": {"patch_zyx": BOX, "starting_patches": 8, "query_patches": 8},
            "trigger": {"accepted_patches": 8},
            "training": {"trainer": "monai_unet", "iterations": 2, "batch_size": 1, "window_zyx": BOX, "threads": 1},
            "inference": {"mc_samples": 1, "tta_symmetries": 1, "window_zyx": list(VOLUME)},
        }
    )
    campaign = Campaign.create(str(folder), config)
    images, command = [], ["--spacing", "0.2,0.1,0.1"]
    for number in range(count):
        volume = make_phantom(VOLUME, (0.2, 0.1, 0.1), number)
        for kind, array in zip(("image", "truth"), volume, strict=False):
            tifffile.imwrite(folder.parent / f"{kind}{number:03d}.tif", array, metadata={"axes": "ZYX"})
        images.append(str(folder.parent / f"image{number:03d}.tif"))
        command += ["--id", f"v{number:03d}", "--truth", str(folder.parent / f"truth{number:03d}.tif")]
    app(["add", str(folder), *images, *command], standalone_mode=False)
    store = open_queue(campaign)
    tickets.prepare(campaign, store)
    SimulatedAnnotator(campaign, store).drain()
    generation = due.begin(campaign, store)
    snapshot.make_snapshot(campaign, generation, store)
    train.train(campaign, generation, lambda step, metrics: None)
    infer.infer(campaign, generation, None, lambda what, done, total: None)
    store.close()


def adopt(folder: Path) -> None:
    """Make `finished` beside `maps`, a campaign of perhaps an earlier version: generation 0 finished, for `status`.

    The volumes are noted as compared before, as `ensure_compared` leaves them when none shows what another shows.
    """
    from rescueseg.campaign import Campaign
    from rescueseg.queue.store import open_queue
    from rescueseg.stages import evaluate, tickets

    with contextlib.suppress(ImportError):  # versions that did not compare have no such record
        from rescueseg.records import Relations

        volumes = Campaign.open(str(folder / "maps")).volumes
        volumes.save_relations(Relations(compared={v.volume_id: v.digest for v in volumes.records()}))
    with contextlib.suppress(ImportError):  # nor did versions that took every database as it was
        from rescueseg.cli.upgrade import upgrade

        upgrade(str(folder / "maps"))
    shutil.copytree(folder / "maps", folder / "finished")
    campaign = Campaign.open(str(folder / "finished"))
    store = open_queue(campaign)
    evaluate.evaluate(campaign, 0)
    tickets.query(campaign, 0, store)
    tickets.enqueue(campaign, 0, store)
    getattr(store, "ledger", store).finish_generation(0)  # once a method of the store
    store.close()


def evaluation(folder: Path) -> Callable[[], object]:
    """Return the evaluation of generation 0, as its flow calls it."""
    from rescueseg.campaign import Campaign
    from rescueseg.stages.evaluate import evaluate

    return partial(evaluate, Campaign.open(str(folder)), 0)


def query(folder: Path) -> Callable[[], object]:
    """Return the query of generation 0, as its flow calls it."""
    from rescueseg.campaign import Campaign
    from rescueseg.queue.store import open_queue
    from rescueseg.stages.tickets import query

    campaign = Campaign.open(str(folder))
    return partial(query, campaign, 0, open_queue(campaign))


def status(folder: Path) -> Callable[[], object]:
    """Return `rescueseg status`, with what it imports while it runs."""
    from rescueseg.cli.main import app
    from rescueseg.queue import store  # noqa: F401
    from rescueseg.reports import generation_table  # noqa: F401
    from rescueseg.services import prefect_server, state  # noqa: F401
    from rescueseg.stages import due  # noqa: F401

    return partial(app, ["status", str(folder)], standalone_mode=False)


OPERATIONS = {"evaluation": evaluation, "query": query, "status": status}


def measure(operation: str, folder: Path) -> None:
    """Run one operation and print what it took, JSON in the last line."""
    began = time.perf_counter()
    work = OPERATIONS[operation](folder)
    start, busy = time.perf_counter(), time.process_time()
    Path(BEGIN).exists()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    Path(END).exists()
    took = {"seconds": time.perf_counter() - start, "busy": time.process_time() - busy, "imports": start - began}
    print("\n" + json.dumps(took))


# the process that measures -------------------------------------------------------------------------------------------


def run(checkout: Path, *arguments: object, trace: Path | None = None) -> str:
    """Run this file with the code of a checkout and return what it printed."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    if trace is not None:
        command = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=%file",
            "-o",
            str(trace),
            *command,
        ]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checkout)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(map(str, arguments))} failed\n{done.stdout}\n{done.stderr}")
    return done.stdout


def count_calls(trace: Path, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Return the file operations below a folder by kind, and how often each sort of file was opened, from a trace."""
    kinds, files, inside = Counter[str](), Counter[str](), False
    for line in trace.read_text(errors="replace").splitlines():
        if f'"{BEGIN}"' in line or f'"{END}"' in line:
            inside = f'"{BEGIN}"' in line
        match = CALL.match(line)
        if match is None or not inside:
            continue
        name, rest = match.groups()
        paths = [p for p in re.findall(r'"([^"]*)"', rest) if p == str(folder) or p.startswith(f"{folder}/")]
        if not paths:
            continue
        is_listed = name in OPENS and "O_DIRECTORY" in rest
        kind = "listed" if is_listed else "opened" if name in OPENS else "looked up" if name in LOOKS else "others"
        kinds[kind] += 1
        if kind == "opened":
            files[re.sub(r"\bv\d{3}\b", "<volume>", str(Path(paths[0]).relative_to(folder)))] += 1
    return kinds, files


def cost(checkout: Path, operation: str, source: Path, out: Path, *, traced: bool) -> Cost:
    """Measure one operation on a copy of a campaign: its seconds, or when traced its file operations."""
    copy, trace = out / "copy", out / "trace.txt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    took = json.loads(run(checkout, "measure", operation, copy, trace=trace if traced else None).splitlines()[-1])
    kinds, files = count_calls(trace, copy) if traced else (Counter[str](), Counter[str]())
    return Cost(took["seconds"], took["busy"], took["imports"], kinds, files)


def campaigns(out: Path, count: int, versions: Mapping[str, Path]) -> dict[str, Path]:
    """Return a folder for each version with its campaign, made where it is not there: `maps`, and `finished`."""
    made = out / f"{count}" / "made"
    if not made.exists():
        part = made.with_name("part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        run(next(iter(versions.values())), "make", part / "campaign", count)
        (part / "campaign").rename(made)
    folders = {}
    for version, checkout in versions.items():
        folders[version] = out / f"{count}" / version
        if folders[version].exists():
            continue
        part = folders[version].with_name("part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(made, part / "maps")
        run(checkout, "adopt", part)
        part.rename(folders[version])
    return folders


def measurements(out: Path, count: int, versions: Mapping[str, Path], repeats: int) -> dict[tuple[str, str], Cost]:
    """Return what each operation takes in each version."""
    folders, results = campaigns(out, count, versions), {}
    for operation in OPERATIONS:
        folder = "finished" if operation == "status" else "maps"
        timed: dict[str, list[Cost]] = {version: [] for version in versions}
        for _ in range(repeats):
            for version, checkout in versions.items():
                timed[version].append(cost(checkout, operation, folders[version] / folder, out, traced=False))
        for version, checkout in versions.items():
            traced = cost(checkout, operation, folders[version] / folder, out, traced=True)
            seconds = [min(getattr(c, name) for c in timed[version]) for name in ("seconds", "busy", "imports")]
            results[operation, version] = Cost(*seconds, traced.operations, traced.files)
    return results


def show(count: int, results: Mapping[tuple[str, str], Cost], versions: list[str], *, files: bool) -> None:
    """Print the table of one campaign."""
    print(f"\n{count} volumes ({' → '.join(versions)})")
    print(
        "| operation | seconds | CPU seconds | file operations | per volume | " + " | ".join(KINDS) + " | imports, s |"
    )
    print("|---" * (6 + len(KINDS)) + "|")
    for operation in OPERATIONS:
        costs = [results[operation, version] for version in versions]
        totals = [sum(c.operations.values()) for c in costs]
        cells = [
            operation,
            change([c.seconds for c in costs], ".2f"),
            change([c.busy for c in costs], ".2f"),
            change(totals, "d"),
            " → ".join(f"{total / count:.1f}" for total in totals),
            *(change([c.operations[kind] for c in costs], "d") for kind in KINDS),
            " → ".join(f"{c.imports:.1f}" for c in costs),
        ]
        print(f"| {' | '.join(cells)} |")
    for operation in OPERATIONS if files else ():
        print(f"\nOpened by {operation}:")
        counts = [results[operation, version].files for version in versions]
        for name in sorted(set().union(*counts), key=lambda n: -max(c.get(n, 0) for c in counts))[:16]:
            print(f"  {' → '.join(str(c.get(name, 0)) for c in counts):>16}  {name}")


def change(values: list[float] | list[int], form: str) -> str:
    """Return one value for each version, and how many times as much the first was.

    >>> change([12, 3], "d")
    '12 → 3 (4.0×)'
    """
    text = " → ".join(format(value, form) for value in values)
    return f"{text} ({values[0] / values[1]:.1f}×)" if len(values) == 2 and values[1] else text


def main() -> None:
    """Measure, or in a process of its own do what is measured."""
    steps: dict[str, Callable[..., None]] = {
        "make": lambda folder, count: make(Path(folder), int(count)),
        "adopt": lambda folder: adopt(Path(folder)),
        "measure": lambda operation, folder: measure(operation, Path(folder)),
    }
    if len(sys.argv) > 2 and sys.argv[1] in steps:
        steps[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="gets the campaigns; what is there already is used again")
    parser.add_argument("--volumes", type=int, nargs="+", default=[100])
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", action="store_true", help="print which files are opened how often")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("file operations are counted by strace, which is not installed")
    out = options.out.resolve()
    versions = {"before": options.before.resolve()} if options.before else {}
    versions["now"] = ROOT
    for count in options.volumes:
        show(count, measurements(out, count, versions, options.repeats), list(versions), files=options.files)


if __name__ == "__main__":
    main()
