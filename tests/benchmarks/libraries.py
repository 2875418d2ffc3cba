"""Libraries against what stood or stands in their place: time, memory, and whether the results are the same.

    python tests/benchmarks/libraries.py [--runs 7]

Both sides run in turn in one process; the time is the least of all runs, the memory what a forked process needed beyond what it
had. Nothing is random. What is not used is no dependency either: `pip install edt fill-voids slicerio itsdangerous` first;
without them their rows are left out. docs/libraries.md holds the table.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import multiprocessing
import re
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stamina
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.multiscales import Multiscale
from scipy import ndimage
from skimage.measure import label
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.testclient import TestClient

from rescueseg.annotation.formats.base import Frame
from rescueseg.annotation.formats.nrrd import Nrrd, write_nrrd
from rescueseg.errors import RescuesegError
from rescueseg.geometry import Box
from rescueseg.labels import PatchLabels
from rescueseg.server.access import image_id, lease_of_image
from rescueseg.server.guard import Guard
from rescueseg.volumes import ome_zarr
from rescueseg.voxels.components import fill_holes, label_components

SHAPES = ((12, 20, 20), (24, 64, 64), (64, 256, 256))
SPACING = (5.0, 0.994, 0.994)
"""Two-photon vessels: five to one, and no binary fraction."""
LEASE = "3f2a91c0" * 4
BOMB_ZYX = (256, 1024, 1024)


@dataclass(frozen=True)
class Comparison:
    """One operation, done by what stood there and by the library."""

    operation: str
    case: str
    names: tuple[str, str]
    before: Callable[[], Any]
    after: Callable[[], Any]
    equal: Callable[[Any, Any], str]
    """Says "yes", or what differs."""
    in_use: int
    """Which of the two rescueseg uses."""


def structure(shape: Sequence[int], noise: float = 0.01) -> np.ndarray:
    """Return a mask of rounded structures with stray voxels and holes."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (1, 3, 3)) > 0.02
    return np.asarray(smooth ^ (rng.random(shape) < noise))


def same(before: Any, after: Any) -> str:
    """Compare arrays, or dictionaries."""
    if not isinstance(before, np.ndarray):
        return "yes" if before == after else "no"
    differ = int(np.count_nonzero(before != after))
    return "yes" if not differ else f"no: {differ} voxels"


def components() -> Iterator[Comparison]:
    """Compare labelling and filling with scipy's and scikit-image's."""
    for shape in SHAPES:
        mask, case = structure(shape), "×".join(map(str, shape))
        for connectivity, rank in ((6, 1), (26, 3)):
            footprint = ndimage.generate_binary_structure(3, rank)
            yield Comparison(
                f"components, {connectivity} neighbours", case, ("scipy", "cc3d"),
                lambda m=mask, f=footprint: ndimage.label(m, f)[0],
                lambda m=mask, c=connectivity: label_components(m, c)[0], same, 1,
            )  # fmt: skip
        numbers = ndimage.label(mask)[0] % 7
        yield Comparison(
            "components of numbered objects", case, ("scikit-image", "cc3d"),
            lambda n=numbers: label(n, background=0, connectivity=3),
            lambda n=numbers: label_components(n, 26)[0], same, 1,
        )  # fmt: skip
        yield Comparison(
            "holes filled", case, ("scipy", "cc3d"),
            lambda m=mask: ndimage.binary_fill_holes(m), lambda m=mask: fill_holes(m), same, 1,
        )  # fmt: skip


def distances() -> Iterator[Comparison]:
    """Compare edt with scipy by the voxels within five voxels of the background, a distance that many have exactly."""
    import edt

    far = 5 * min(SPACING)

    def near(before: np.ndarray, after: np.ndarray) -> str:
        return same(before <= far, after <= far)

    for shape in SHAPES:
        mask = structure(shape, 0.001)
        yield Comparison(
            "distance, 5:1", "×".join(map(str, shape)), ("scipy", "edt"),
            lambda m=mask: ndimage.distance_transform_edt(m, sampling=SPACING),
            lambda m=mask: edt.edt(m, anisotropy=SPACING, parallel=1), near, 0,
        )  # fmt: skip


def holes() -> Iterator[Comparison]:
    """Compare fill-voids with ours, also on small boxes whose background reaches the border at many places."""
    import fill_voids

    for shape in SHAPES[1:]:
        mask = structure(shape)
        yield Comparison(
            "holes filled", "×".join(map(str, shape)), ("cc3d", "fill-voids"),
            lambda m=mask: fill_holes(m), lambda m=mask: fill_voids.fill(m), same, 0,
        )  # fmt: skip
    rng = np.random.default_rng(1)
    boxes = [rng.random(tuple(rng.integers(1, 9, 3))) < rng.random() ** 0.25 for _ in range(2000)]
    yield Comparison(
        "holes filled", "2000 boxes up to 8×8×8", ("cc3d", "fill-voids"),
        lambda: [fill_holes(b) for b in boxes], lambda: [fill_voids.fill(b) for b in boxes],
        lambda a, b: f"no: {n} boxes" if (n := sum(not np.array_equal(*pair) for pair in zip(a, b, strict=True))) else "yes",
        0,
    )  # fmt: skip


def metadata() -> Iterator[Comparison]:
    """Compare OME-NGFF metadata typed by hand with ome_zarr_models."""

    def by_hand() -> dict[str, Any]:
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        transforms = [{"type": "scale", "scale": [1.0, *SPACING]}]
        datasets = [{"path": "0", "coordinateTransformations": transforms}]
        return {"version": "0.5", "multiscales": [{"name": "image", "axes": axes, "datasets": datasets}]}

    def by_models() -> dict[str, Any]:
        datasets = (ome_zarr._dataset("0", 4, (1, 1, 1), SPACING),)
        multiscale = Multiscale(name="image", axes=ome_zarr._axes(4), datasets=datasets)
        return ome_zarr._json(ImageAttrs(version="0.5", multiscales=[multiscale]))

    yield Comparison(
        "OME-NGFF metadata", "one image, czyx", ("by hand", "ome_zarr_models"), by_hand, by_models, same, 1
    )


def retries() -> Iterator[Comparison]:
    """Compare a loop with stamina where the server answers at once; the pauses are alike but for chance."""

    def by_loop() -> int:
        for pause in (0.5, 1.0, 2.0, 4.0, 0.0):
            if (status := 200) not in (429, 503):
                break
            time.sleep(pause)
        return status

    def by_stamina() -> int:
        for attempt in stamina.retry_context(
            OSError, attempts=5, timeout=None, wait_initial=0.5, wait_max=4.0, wait_jitter=0.5
        ):
            with attempt:
                status = 200
        return status

    yield Comparison("asking Prefect again", "answered at once", ("loop", "stamina"), by_loop, by_stamina, same, 1)


def altered(text: str) -> set[str]:
    """Return a signed address with one letter changed, added or taken away, in all ways."""
    letters = string.printable + "é"
    changed = {text[:i] + c + text[i + 1 :] for i in range(len(text)) for c in letters}
    added = {text[:i] + c + text[i:] for i in range(len(text) + 1) for c in letters}
    return (changed | added | {text[:i] + text[i + 1 :] for i in range(len(text))}) - {text}


def signatures() -> Iterator[Comparison]:
    """Compare signed image addresses with itsdangerous: how many altered ones each takes."""
    from itsdangerous import BadSignature, Signer

    key = b"k" * 32
    signer = Signer(key, salt="image", sep="~", digest_method=hashlib.sha256)
    ours, theirs = image_id(key, LEASE), signer.sign(LEASE).decode()

    def accepted(read: Callable[[str], object], text: str) -> int:
        count = 0
        for other in altered(text):
            with contextlib.suppress(RescuesegError, BadSignature):
                read(other)
                count += 1
        return count

    counts = accepted(lambda text: lease_of_image(key, text), ours), accepted(signer.unsign, theirs)
    yield Comparison(
        "signed image address read", "one lease", ("hmac", "itsdangerous"),
        lambda: lease_of_image(key, ours), lambda: signer.unsign(theirs).decode(),
        lambda a, b: f"no: of all addresses with one letter altered {counts[0]} are taken, and {counts[1]}"
        if a == b and any(counts) else same(a, b), 0,
    )  # fmt: skip


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def host_guards() -> Iterator[Comparison]:
    """Compare what a page at a foreign host name is told, and what a proxy is."""
    hosts = ("127.0.0.1", "localhost", "::1")
    ours = Guard(_answer, holder=None, allowed_origins=(), limit=lambda: 1)
    clients = [TestClient(app) for app in (ours, TrustedHostMiddleware(_answer, hosts, www_redirect=False))]
    requests = (("evil.example", {}), ("localhost", {}), ("localhost", {"X-Forwarded-For": "10.0.0.1"}))

    def replies(client: TestClient) -> list[str]:
        answers = [client.get("/page", headers={"Host": host, **more}) for host, more in requests]
        return [f"{a.status_code} {a.headers.get('content-type', '').split(';')[0]}".strip() for a in answers]

    yield Comparison(
        "Host guard", "foreign host, own, through a proxy", ("Guard", "TrustedHostMiddleware"),
        lambda: replies(clients[0]), lambda: replies(clients[1]),
        lambda a, b: "yes" if a == b else f"no: {', '.join(a)} against {', '.join(b)}", 0,
    )  # fmt: skip


def segmentations(folder: Path) -> Iterator[Comparison]:
    """Compare reading of .seg.nrrd with slicerio: a patch, what unpacks to far more than a patch, and a free tag."""
    import slicerio

    box = Box((0, 0, 0), SHAPES[1])
    frame = Frame("pool-0001-0123456789abcdef", box, SPACING, ("vessel",))
    classes = structure(box.shape_zyx).astype(np.uint8)
    patch, bomb, tagged = folder / "patch.seg.nrrd", folder / "bomb.seg.nrrd", folder / "tag.seg.nrrd"
    Nrrd().write_labels(patch, PatchLabels(classes), frame)
    fields = {"Segment0_LabelValue": "1", "Segment0_Name": "vessel", "Segment0_Layer": "0"}
    write_nrrd(bomb, np.zeros(BOMB_ZYX, np.uint8), np.eye(4), fields)
    tagged.write_bytes(re.sub(rb"(?m)^(Segment0_Tags:=).*$", rb"\1a free word|", patch.read_bytes()))

    def by_slicerio(path: Path) -> Any:
        try:
            return slicerio.read_segmentation(str(path))["voxels"].T
        except ValueError as error:
            return f"{type(error).__name__}"

    size = bomb.stat().st_size // 1024
    for path, case in (
        (patch, "24×64×64"),
        (bomb, f"{size} KiB that unpack to 256 MiB"),
        (tagged, "a tag without colon"),
    ):
        yield Comparison(
            ".seg.nrrd read", case, ("own reader", "slicerio"),
            lambda p=path: Nrrd().load(p, frame).array, lambda p=path: by_slicerio(p),
            lambda a, b: f"no: {b}" if isinstance(b, str) else "no: all is read" if b.size > box.size else same(a, b), 0,
        )  # fmt: skip


def milliseconds(comparison: Comparison, runs: int) -> tuple[float, float]:
    """Return the least time of both sides, run in turn."""
    best = [float("inf")] * 2
    for _ in range(runs):
        for side, call in enumerate((comparison.before, comparison.after)):
            begin = time.perf_counter()
            call()
            best[side] = min(best[side], time.perf_counter() - begin)
    return best[0] * 1e3, best[1] * 1e3


def _memory(field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def _peak(call: Callable[[], Any], pipe: Any) -> None:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held = _memory("VmRSS")
    call()
    pipe.send((_memory("VmHWM") - held) / 1024)


def peak_mib(call: Callable[[], Any]) -> float:
    """Return how much more memory than before a forked process needed at most, in MiB."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_peak, args=(call, theirs))
    process.start()
    theirs.close()
    peak = ours.recv()
    process.join()
    return max(0.0, peak)


def comparisons(folder: Path) -> Iterator[Comparison]:
    """Yield all comparisons whose libraries are installed."""
    yield from components()
    optional = {
        "fill_voids": holes,
        "edt": distances,
        "itsdangerous": signatures,
        "slicerio": lambda: segmentations(folder),
    }
    for name, make in optional.items():
        if importlib.util.find_spec(name):
            yield from make()
    yield from metadata()
    yield from retries()
    yield from host_guards()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(
        "| Operation | Case | Before → after | ms | Ratio | MiB | Equal | In use |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for row in comparisons(Path(folder)):
            equal = row.equal(row.before(), row.after())
            before, after = milliseconds(row, runs)
            memory = " → ".join(f"{peak_mib(call):.0f}" for call in (row.before, row.after))
            cells = (row.operation, row.case, " → ".join(row.names), f"{before:.3g} → {after:.3g}")
            print(
                "|",
                " | ".join((*cells, f"{before / after:.2g}", memory, equal, row.names[row.in_use])),
                "|",
                flush=True,
            )


if __name__ == "__main__":
    main()
