"""No voxel of the specimen is trained on and judged by, whatever the volumes that show it are called.

Files are imported as a person would: crops, mirror images, 8-bit copies, with other truths and spacings, some before the
holdout is drawn and some after. What overlaps is known here from the numbers of the source's voxels and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.campaign.route import TRIAGE_SUMMARY, AdvisedRoute, MeasuredValue, TriageSummary
from rescueseg.campaign.snapshot import make_snapshot
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.config import check_config
from rescueseg.errors import CampaignError, ConfigError, LeakError, SamplingError
from rescueseg.geometry import Box, Patch
from rescueseg.records import AcceptedAnnotation
from rescueseg.sampling import patches, starting_patches
from rescueseg.volumes import VolumeImport, import_volume

SOURCE = (26, 28, 32)
"""Shape of each of the two specimens."""
EXACT, NEAR = (4, 64), (6, 512)
"""Voxels along each axis and in all that an overlap has at least: what is smaller nobody promises to find (see
`rescueseg.volumes.same_voxels` and `near_copies`); the files are drawn so that they share this much or nothing."""


@dataclass
class File:
    """A volume as it is imported, and which voxels of which specimen it shows."""

    name: str
    specimen: int
    crop: Box
    signs: tuple[int, int, int]
    eight_bit: bool
    numbers: np.ndarray = field(repr=False)

    def shows(self, box: Box) -> np.ndarray:
        """Return the numbers of the specimens' voxels in a box, as far as it lies in the volume."""
        inside = box.intersection(Box((0, 0, 0), self.numbers.shape))
        return self.numbers[inside.slices].ravel() if inside else np.zeros(0, np.int64)


def specimens(rng: np.random.Generator) -> list[np.ndarray]:
    """Return two specimens: structure of a few voxels, and noise."""
    made = []
    for _ in range(2):
        structure = ndimage.gaussian_filter(rng.normal(size=SOURCE), 1.2)
        made.append((4000 + 4000 * structure + rng.normal(0, 150, SOURCE)).clip(0, 65535).astype(np.uint16))
    return made


def draw_files(rng: np.random.Generator, count: int) -> list[File]:
    """Draw what the files show; about half show what an earlier one shows, in another way."""
    files: list[File] = []
    while len(files) < count:
        if files and rng.random() < 0.5:
            like = files[rng.integers(len(files))]
            specimen, crop = like.specimen, like.crop
        else:
            specimen, shape = int(rng.integers(2)), [int(rng.integers(12, 25)) for _ in SOURCE]
            offset = [int(rng.integers(n - s + 1)) for n, s in zip(SOURCE, shape, strict=True)]
            crop = Box(tuple(offset), tuple(shape))
        signs = tuple(int(s) for s in rng.choice([1, -1], 3, p=[0.7, 0.3]))
        numbers = np.arange(np.prod(SOURCE)).reshape(SOURCE)[crop.slices] + specimen * np.prod(SOURCE)
        turned = numbers[tuple(slice(None, None, s) for s in signs)]
        new = File(f"v{len(files)}", specimen, crop, signs, bool(rng.random() < 0.3), turned)
        if all(may_share(new, other) for other in files):
            files.append(new)
    return [files[i] for i in rng.permutation(count)]


def may_share(one: File, other: File) -> bool:
    """Tell whether two files share nothing, or enough to be found."""
    common = one.crop.intersection(other.crop)
    if one.specimen != other.specimen or common is None or one.crop == other.crop:
        return True
    side, voxels = NEAR if one.eight_bit or other.eight_bit else EXACT
    return min(common.shape_zyx) >= side and common.size >= voxels


def bring_in(campaign: Campaign, folder: Path, file: File, images: list[np.ndarray], rng: np.random.Generator) -> None:
    """Write a file and import it, with a truth and a spacing of its own."""
    voxels = images[file.specimen][file.crop.slices][tuple(slice(None, None, s) for s in file.signs)]
    if file.eight_bit:
        voxels = ((voxels - voxels.min()) / float(np.ptp(voxels)) * 255).round().astype(np.uint8)
    path, truth = folder / f"{file.name}.tif", folder / f"{file.name}-truth.tif"
    tifffile.imwrite(path, np.ascontiguousarray(voxels), metadata={"axes": "ZYX"})
    tifffile.imwrite(truth, (rng.random(voxels.shape) < 0.3).astype(np.uint8), metadata={"axes": "ZYX"})
    spacing = [(0.1, 0.1, 0.1), (0.1001, 0.1, 0.1), (0.3, 0.1, 0.1)][rng.integers(3)]
    import_volume(
        campaign,
        VolumeImport(str(path), volume_id=file.name, spacing=spacing, truth=str(truth) if rng.random() < 0.5 else None),
    )


def accepted(places: list[Patch]) -> list[AcceptedAnnotation]:
    return [
        AcceptedAnnotation(
            ticket_id=f"t{i}", volume_id=p.volume_id, box=p.box, purpose="pool", generation=0, stratum="dense",
            annotation_id=f"n{i}", version=1, labels="annotations/t/d.npz", labels_digest="d", annotator="ann",
            tool="none", seconds=1.0, voxels_corrected=0,
        )
        for i, p in enumerate(places)
    ]  # fmt: skip


def leaks(seed: int, folder: Path) -> Iterator[str]:
    """Run a campaign from its files to the second snapshot, and yield what was shared that must not be."""
    rng = np.random.default_rng([20_26, seed])
    images, files = specimens(rng), draw_files(rng, int(rng.integers(3, 6)))
    shown = {file.name: file for file in files}
    config = {
        "name": "n", "classes": ["o"], "seed": seed, "sampling": {"starting_patches": 3, "patch_zyx": [5, 6, 7]},
        "holdout": {"validation_boxes": 3, "test_boxes": 3, "box_zyx": [6, 5, 6], "guard_zyx": [1, 2, 2]},
    }  # fmt: skip
    campaign = Campaign.create(str(folder / "campaign"), check_config(config))
    first = int(rng.integers(1, len(files)))
    for file in files[:first]:
        bring_in(campaign, folder, file, images, rng)
    holdout = starting_patches.draw_holdout(campaign)
    started = [Patch(p.volume_id, p.box) for p in starting_patches.starting_patches(campaign)]
    snapshots = [make_snapshot(campaign, 0, accepted(started))]
    campaign.generation(0).write(SNAPSHOT, snapshots[0])
    for file in files[first:]:
        bring_in(campaign, folder, file, images, rng)
    holdout = starting_patches.draw_holdout(campaign, started)
    offered, _ = starting_patches.all_candidates(campaign, started)
    candidates = [Patch(name, box) for name, boxes in offered.items() for box in boxes]
    try:
        more = [Patch(p.volume_id, p.box) for p in starting_patches.starting_patches(campaign, 3, started)]
    except SamplingError:
        more = []
    snapshots.append(make_snapshot(campaign, 1, accepted([*started, *more])))

    held = {box: set(shown[box.volume_id].shows(box.box)) for box in holdout.boxes}
    for one in holdout.boxes:
        for other in holdout.boxes:
            if holdout.boxes.index(one) < holdout.boxes.index(other) and held[one] & held[other]:
                yield f"the {one.part} box {one.patch} is also in the {other.part} box {other.patch}"
    guarded = {n for b in holdout.boxes for n in shown[b.volume_id].shows(b.box.expand(holdout.guard_zyx))}
    for snapshot in snapshots:
        for item in snapshot.items:
            if set(shown[item.volume_id].shows(item.read_box)) & set().union(*held.values()):
                yield f"generation {snapshot.generation} reads {item.volume_id} {item.read_box}, which is held out"
    taken: set[int] = set()
    for patch in [*started, *more]:
        here = set(shown[patch.volume_id].shows(patch.box))
        if here & taken:
            yield f"{patch} is annotated twice"
        taken |= here
    occupied = {n for patch in started for n in shown[patch.volume_id].shows(patch.box)}
    for patch in [*candidates, *more]:
        here = set(shown[patch.volume_id].shows(patch.box))
        if here & guarded or here & occupied:
            yield f"the candidate {patch} is held out or has a ticket"


def check_campaigns(seeds: range, folder: Path) -> None:
    """Run campaigns; those too small for a holdout do not count, and are few."""
    full = 0
    for seed in seeds:
        (folder / str(seed)).mkdir()
        try:
            found = list(leaks(seed, folder / str(seed)))
        except SamplingError as error:
            if "no room" in str(error) or "no patch fits" in str(error):
                continue
            raise
        assert not found, f"seed {seed}: {found[0]} ({len(found)} in all)"
        full += 1
    assert full >= 0.8 * len(seeds)


@pytest.fixture(autouse=True)
def fewer_places_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: how places are sorted into strata does not matter here."""
    monkeypatch.setattr(patches, "_MOST_MEASURED", 32)


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_nothing_is_trained_on_and_judged_by(start: int, tmp_path: Path) -> None:
    check_campaigns(range(start, start + 10), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_nothing_is_trained_on_and_judged_by_in_a_thousand_campaigns(start: int, tmp_path: Path) -> None:
    check_campaigns(range(start, start + 100), tmp_path)


# volumes held out whole, and the guard by the size of the objects


def write(folder: Path, name: str, voxels: np.ndarray) -> str:
    tifffile.imwrite(folder / f"{name}.tif", np.ascontiguousarray(voxels), metadata={"axes": "ZYX"})
    return str(folder / f"{name}.tif")


def make(folder: Path, **holdout: object) -> Campaign:
    small = {"validation_boxes": 2, "test_boxes": 2, "box_zyx": [6, 6, 6]}
    config = {
        "name": "n", "classes": ["o"], "sampling": {"patch_zyx": [6, 6, 6]}, "holdout": {**small, **holdout},
    }  # fmt: skip
    return Campaign.create(str(folder / "campaign"), check_config(config))


def test_nothing_that_a_volume_held_out_whole_shows_is_offered_or_read(tmp_path: Path) -> None:
    one, two = specimens(np.random.default_rng(0))
    campaign = make(tmp_path, volumes=["whole"], guard_zyx=[1, 2, 2])
    import_volume(campaign, VolumeImport(write(tmp_path, "whole", one[:, :, 16:]), spacing=(1, 1, 1)))
    import_volume(campaign, VolumeImport(write(tmp_path, "beside", one[:, :, :24][::-1]), spacing=(1, 1, 1)))
    import_volume(campaign, VolumeImport(write(tmp_path, "other", two), spacing=(1, 1, 1)))
    holdout = starting_patches.draw_holdout(campaign)
    assert holdout.whole == ("whole",)
    assert {b.volume_id for b in holdout.boxes} == {"whole"}
    assert [b.part for b in holdout.boxes] == ["validation", "test"] * 2
    assert starting_patches.candidate_boxes(campaign, "whole") == []
    offered = starting_patches.candidate_boxes(campaign, "beside")
    assert offered
    assert max(box.stop_zyx[2] for box in offered) <= 16 - 2, "voxels 16 to 24 are those of the other, then the guard"
    last = Patch("beside", max(offered, key=lambda box: box.stop_zyx[2]))
    read = make_snapshot(campaign, 0, accepted([last])).items[0].read_box
    assert read.stop_zyx[2] <= 16
    with pytest.raises(LeakError, match="overlaps the holdout box"):
        make_snapshot(campaign, 0, accepted([Patch("whole", Box((0, 0, 0), (4, 4, 4)))]))
    import_volume(campaign, VolumeImport(write(tmp_path, "copy", one[:, ::-1, 16:]), spacing=(1, 1, 1)))
    grown = starting_patches.draw_holdout(campaign)
    assert (grown.boxes, grown.whole) == (holdout.boxes, ("whole",)), "boxes are drawn in no other volume"
    assert starting_patches.candidate_boxes(campaign, "copy") == []
    with pytest.raises(CampaignError, match="only grow"):
        campaign.freeze_holdout(grown.model_copy(update={"whole": None}))


def test_a_volume_that_cannot_be_held_out_whole_is_named(tmp_path: Path) -> None:
    one, _ = specimens(np.random.default_rng(0))
    campaign = make(tmp_path, volumes=["gone"])
    import_volume(campaign, VolumeImport(write(tmp_path, "a", one), spacing=(1, 1, 1)))
    with pytest.raises(SamplingError, match=r"^holdout.volumes: there is no volume 'gone'"):
        starting_patches.draw_holdout(campaign)
    (tmp_path / "second").mkdir()
    seen = make(tmp_path / "second", volumes=["a"])
    import_volume(seen, VolumeImport(str(tmp_path / "a.tif"), spacing=(1, 1, 1)))
    import_volume(seen, VolumeImport(write(tmp_path, "b", one[2:]), spacing=(1, 1, 1)))
    seen.save_rough_patches([Patch("b", Box((0, 0, 0), (4, 4, 4)))])
    with pytest.raises(SamplingError, match="'a' cannot be held out whole: something that it shows was annotated"):
        starting_patches.draw_holdout(seen)


def balls(folder: Path, diameter: int) -> tuple[str, str]:
    """Write an image of balls, 16 voxels apart, and the truth that numbers them."""
    shape, number = (40, 120, 120), 0
    numbers = np.zeros(shape, np.uint16)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    for z in (12, 28):
        for y in range(10, 120, 16):
            for x in range(10, 120, 16):
                number += 1
                numbers[((grid - (z, y, x)) ** 2).sum(axis=-1) <= (diameter / 2) ** 2] = number
    image = np.random.default_rng(0).normal(1000, 50, shape) + 500 * (numbers > 0)
    return write(folder, "balls", image.astype(np.uint16)), write(folder, "numbers", numbers)


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, 11), ({"guard_um": 3.0}, 6), ({"guard_zyx": [1, 2, 3]}, (1, 2, 3))]
)
def test_the_guard_is_about_an_object_wide_unless_somebody_chose_one(
    tmp_path: Path, settings: dict[str, object], expected: object
) -> None:
    campaign = make(tmp_path, **settings)
    image, truth = balls(tmp_path, 11)
    import_volume(campaign, VolumeImport(image, spacing=(0.5, 0.5, 0.5), truth=truth, truth_type="instance"))
    guard_zyx = starting_patches.draw_holdout(campaign).guard_zyx
    if isinstance(expected, int):
        assert all(abs(width - expected) <= 1 for width in guard_zyx)
    else:
        assert guard_zyx == expected


def test_both_ways_to_choose_a_guard_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        make(tmp_path, guard_um=1.0, guard_zyx=[1, 1, 1])


def test_the_triage_tells_the_guard_where_no_truth_numbers_objects(tmp_path: Path) -> None:
    campaign = make(tmp_path)
    import_volume(campaign, VolumeImport(balls(tmp_path, 11)[0], spacing=(0.5, 0.5, 0.5)))
    triaged = TriageSummary(
        problem="blobs", trainer="monai_unet", route=AdvisedRoute(query="entropy", postprocessing="none"),
        structure=None, mask="auto", evidence=(MeasuredValue(name="thickness", value=4.6),),
    )  # fmt: skip
    campaign.records.write(TRIAGE_SUMMARY, triaged)
    assert starting_patches.draw_holdout(campaign).guard_zyx == (10, 10, 10)
