"""The command line as a person meets it: a round trip, one line per mistake, and no trace of what failed."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import typer
from rich.console import Console
from typer.testing import CliRunner

from rescueseg.campaign import Campaign
from rescueseg.cli import console
from rescueseg.cli.main import app
from rescueseg.queue.due import patches_due
from rescueseg.queue.store import open_queue
from rescueseg.volumes.phantom import make_phantom
from tests.choices import refused_choice

SPACING = "0.25,0.1,0.1"
FAST = ["--set", "sampling.starting_patches=2", "--set", "trigger.accepted_patches=2"]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a phantom, its truth, and files that are wrong in one way each."""
    image, truth, _ = make_phantom((16, 64, 64), seed=3)
    nans = image.astype(np.float32)
    nans[3, 2, 1] = np.nan
    for name, array in {
        "raw": image, "truth": truth, "nan": nans, "other": truth[:8], "sevens": truth * np.uint8(7),
    }.items():  # fmt: skip
        tifffile.imwrite(tmp_path / f"{name}.tif", array, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "flat.tif", image[0])
    (tmp_path / "junk.tif").write_bytes(b"no image at all")
    return tmp_path


def run(*arguments: object, code: int = 0) -> str:
    """Run a command and return what it printed; of a failing one the error line alone."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1, "one line"
        return result.stderr
    assert result.stderr == ""
    return result.stdout


def init(folder: Path, *more: object, code: int = 0) -> str:
    arguments = ["init", folder / "c", folder / "raw.tif", "--classes", "organelle", "--spacing", SPACING, *more]
    return run(*arguments, code=code)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, the queue's database left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("campaign.db"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_asked_of_people_is_said_before_anything_is_frozen(folder: Path) -> None:
    c = folder / "c"
    init(folder, *FAST)
    before = tree(c)
    said = run("sample", c, "--dry-run")
    assert tree(c) == before
    done = run("sample", c)
    opened = Campaign.open(str(c))
    holdout, starting = opened.holdout(), opened.starting_patches()
    assert holdout is not None
    assert starting is not None
    hours = []
    for name, boxes in (("holdout", holdout.boxes), ("first patches", starting)):
        shapes = [place.box.shape_zyx for place in boxes]
        planes, voxels = sum(z for z, _, _ in shapes), sum(z * y * x for z, y, x in shapes)
        hours.append(sum(90 + z * max(5, 40 * y * x / 6400) for z, y, x in shapes) / 3600)
        line = f"  {name}: {len(boxes)} boxes, {planes} planes, {voxels:,} voxels, about {hours[-1]:.1f} hours"
        assert line in said
        assert line in done
    assert len(holdout.boxes) == len(holdout.later or ()) == 8
    assert f"Asked of people before the first model: about {sum(hours):.1f} hours (assumed" in said
    assert "  later, with each generation some: 8 boxes" in said
    told = run("status", c)
    assert "To annotate: holdout: 8 boxes" in told
    assert "To annotate: patches: 2 boxes" in told


def test_from_the_image_to_an_accepted_patch(folder: Path) -> None:
    c = folder / "c"
    assert "16×64×64 voxels" in init(folder, "--truth", folder / "truth.tif", *FAST)
    assert "not due: nothing is sampled yet" in run("status", c)
    before = tree(c)
    said = run("sample", c, "--dry-run")
    assert "8 validation and 8 test boxes would be frozen and 2 tickets queued" in said
    assert tree(c) == before
    parts = ("validation ", "test ", "starting ")
    rows = [line.split() for line in said.splitlines() if line.lstrip().startswith(parts)]
    assert len(rows) == 18
    assert "SNR" in said
    assert "8 validation and 8 test boxes are frozen, 2 new tickets" in (done := run("sample", c, "--preview"))
    assert [line.split() for line in done.splitlines() if line.lstrip().startswith(parts)] == rows
    assert (c / "reports" / "sampling.png").read_bytes().startswith(b"\x89PNG")
    assert "0 new tickets" in run("sample", c)
    said = run("status", c)
    assert "raw: 16×64×64 voxels (zyx), 0.25 × 0.1 × 0.1 µm, semantic truth" in said
    assert "Queue: 2 queued" in said
    assert "not due: 0 of 2 patches" in said
    for accepted in (1, 2):
        out = folder / f"patch {accepted}"
        said = run("queue", "next", c, "-a", "anna", "--out", out)
        [mask] = out.glob("*_labels.nii.gz")
        labels = np.asarray(nib.load(mask).dataobj).astype(np.uint8)
        labels[0, 0, 0] = 1
        nib.save(nib.Nifti1Image(labels, nib.load(mask).affine), mask)
        [hand_in] = re.findall(r"^hand in +rescueseg (.*)", said, re.MULTILINE)
        assert shlex.split(hand_in)[3] == str(mask), "the file says which patch it is of"
        assert "accepted, 1 voxels corrected" in run(*shlex.split(hand_in))
        assert f"{accepted} of 2 accepted patches" in run("queue", "status", c)
    assert "Generation 0 is due: 2 of 2" in run("status", c)
    said = run("generation", c, "--dry-run")
    assert "snapshot: would run" in said
    campaign = Campaign.open(str(c))
    assert patches_due(campaign.config, open_queue(campaign))[0]
    assert campaign.generations() == []


# help and start ------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in command.commands.items())
        else:
            yield name, command


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_shows_an_example_that_fits_it(name: str) -> None:
    said = " ".join(run(*name.split(), "--help").split())
    assert f"Example: rescueseg {name} " in said
    command = dict(commands())[name]
    assert command.epilog is not None
    words = shlex.split(command.epilog.removeprefix(f"Example: rescueseg {name} "))
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known
    assert command.help


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = "import sys, rescueseg.cli.main; print(sorted({'torch', 'monai', 'mlflow', 'prefect'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# mistakes ------------------------------------------------------------------------------------------------------------

WRONG = {
    "missing file": (["none.tif"], "there is no such file"),
    "unreadable file": (["junk.tif"], "cannot be read"),
    "unknown format": (["notes.txt"], "the format is not known"),
    "wrong dimensionality": (["flat.tif"], "not a 3D image"),
    "NaNs": (["nan.tif"], "voxel (3, 2, 1) (z y x, channel 0) is NaN"),
    "missing spacing": (["raw.tif", "--spacing", ""], "the voxel size is not known"),
    "spacing of words": (["raw.tif", "--spacing", "1,2"], "'1,2' is no spacing"),
    "negative spacing": (["raw.tif", "--spacing", "1,-2,1"], "is not positive"),
    "label outside the classes": (["raw.tif", "--truth", "sevens.tif"], "the labels hold 7, which is no class"),
    "mask of another shape": (["raw.tif", "--truth", "other.tif"], "the labels have shape (8, 64, 64)"),
    "two truths": (["raw.tif", "--truth", "truth.tif", "--truth", "truth.tif"], "2 given for 1 volumes"),
    "two of one name": (["raw.tif", "raw.tif"], "two volumes would be called 'raw'"),
    "name that leaves the folder": (["raw.tif", "--id", "../x"], "no valid volume id"),
    "unknown section": (["raw.tif", "--set", "trainig.iterations=3"], "unknown key 'trainig'. Did you mean 'training'"),
    "unknown key": (["raw.tif", "--set", "training.iteration=3"], "Did you mean 'training.iterations'"),
    "value out of range": (["raw.tif", "--set", "training.dropout=2"], "'training.dropout'"),
    "no section": (["raw.tif", "--set", "name.x=3"], "'name' is no section"),
    "no pair": (["raw.tif", "--set", "training"], "is no KEY=VALUE"),
    "no class": (["raw.tif", "--classes", ","], "'classes'"),
    "class twice": (["raw.tif", "--classes", "a,a"], "class names must differ"),
    "second volume bad": (["raw.tif", "flat.tif"], "not a 3D image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("x")
    monkeypatch.chdir(folder)
    before, names = tree(folder), sorted(folder.iterdir())
    arguments, expected = WRONG[what]
    said = run("init", "c", "--classes", "organelle", "--spacing", SPACING, *arguments, code=1)
    assert expected in said
    assert (tree(folder), sorted(folder.iterdir())) == (before, names)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["init", "add"])
def test_a_truth_type_that_is_none_is_refused_with_the_ones_there_are(command: str, folder: Path) -> None:
    more = ["--classes", "organelle"] if command == "init" else []
    before = tree(folder)
    words = [command, folder / "c", folder / "raw.tif", "--truth-type", "fuzzy", *more]
    said = refused_choice(CliRunner().invoke(app, [str(word) for word in words]))
    assert "Invalid value for '--truth-type'" in said
    assert "'fuzzy' is not one of 'semantic', 'instance'" in said
    assert tree(folder) == before


@pytest.mark.parametrize("what", ["NaNs", "label outside the classes", "mask of another shape", "two of one name"])
def test_a_mistake_in_an_added_volume_leaves_the_campaign_as_it_was(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(folder)
    monkeypatch.chdir(folder)
    before = tree(folder)
    arguments, expected = WRONG[what]
    shutil.copy("raw.tif", "raw2.tif")
    arguments = [argument.replace("raw", "raw2") for argument in arguments]
    assert expected.replace("raw", "raw2") in run("add", "c", "--spacing", SPACING, *arguments, code=1)
    assert tree(folder) == before | {"raw2.tif": before["raw.tif"]}


def test_what_else_lies_in_the_folder_is_never_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = folder / "c"
    c.mkdir()
    (c / "notes.txt").write_text("mine")
    run("init", c, folder / "nan.tif", "--classes", "a", "--spacing", SPACING, code=1)
    assert tree(c) == {"notes.txt": b"mine"}
    (c / "volumes").mkdir()
    shutil.copy(folder / "nan.tif", c / "volumes" / "my only copy.tif")
    before = tree(c)
    monkeypatch.chdir(c)
    said = run("init", ".", "volumes/my only copy.tif", "--classes", "a", "--spacing", SPACING, code=1)
    assert "the folder holds 'volumes'" in said
    assert tree(c) == before


def test_volumes_before_one_that_fails_stay_and_that_is_said(folder: Path) -> None:
    arguments = [folder / "raw.tif", folder / "nan.tif", "--classes", "a", "--spacing", SPACING]
    result = CliRunner().invoke(app, ["init", str(folder / "c"), *map(str, arguments)])
    assert result.exit_code == 1
    assert "1 of 2 volumes are in the campaign; 'rescueseg add' adds the others" in result.stdout
    assert "is NaN" in result.stderr
    assert [v.volume_id for v in Campaign.open(str(folder / "c")).volumes.records()] == ["raw"]


def test_commands_without_a_campaign_say_so(tmp_path: Path) -> None:
    for command in (["status"], ["sample"], ["generation"], ["up"], ["queue", "next"], ["queue", "status"]):
        assert "there is no campaign here" in run(*command, tmp_path, code=1)
    assert list(tmp_path.iterdir()) == []
    assert "there is no campaign here" in run("add", tmp_path, "x.tif", code=1)
    assert "there is no campaign here" in run("infer", tmp_path, "x", code=1)


def test_a_campaign_is_not_started_twice(folder: Path) -> None:
    init(folder)
    before = tree(folder)
    assert "there is a campaign already" in init(folder, code=1)
    assert "there is a campaign already" in init(folder, "--dry-run", code=1)
    assert tree(folder) == before


def test_an_unknown_key_in_the_campaign_file(folder: Path) -> None:
    init(folder)
    with (folder / "c" / "campaign.toml").open("a") as file:
        file.write("\n[trainig]\niterations = 3\n")
    said = run("status", folder / "c", code=1)
    assert "campaign.toml: unknown key 'trainig'. Did you mean 'training'?" in said


def test_a_lease_that_has_ended(folder: Path) -> None:
    init(folder, "--truth", folder / "truth.tif", *FAST)
    run("sample", folder / "c")
    said = run("queue", "next", folder / "c", "-a", "anna", "--out", folder / "p")
    [hand_in] = re.findall(r"^hand in +rescueseg (.*)", said, re.MULTILINE)
    with closing(sqlite3.connect(folder / "c" / "campaign.db")) as database, database:
        database.execute("UPDATE leases SET expires_at = granted_at")
    before = tree(folder)
    assert "its lease has run out" in run(*shlex.split(hand_in), code=1)
    [lease] = re.findall(r"^lease +(\w+)", said, re.MULTILINE)
    [mask] = (folder / "p").glob("*_labels.nii.gz")
    assert "the lease ended" in run("queue", "submit", folder / "c", lease, mask, "-a", "anna", code=1)
    assert tree(folder) == before
    assert open_queue(Campaign.open(str(folder / "c"))).views.accepted() == []


def test_a_mask_that_does_not_fit_is_not_handed_in(folder: Path) -> None:
    init(folder, "--truth", folder / "truth.tif", *FAST)
    run("sample", folder / "c")
    said = run("queue", "next", folder / "c", "-a", "anna", "--out", folder / "p")
    [lease] = re.findall(r"^lease +(\w+)", said, re.MULTILINE)
    before = tree(folder)
    submit = ["queue", "submit", folder / "c", lease, folder / "sevens.tif", "-a", "anna"]
    assert "has shape (16, 64, 64)" in run(*submit, code=1)
    assert tree(folder) == before
    assert open_queue(Campaign.open(str(folder / "c"))).views.accepted() == []


# a full disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_while_small_files_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated where every file of the campaign is flushed."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = tree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "the disk is full. Free some space" in init(folder, code=1)
    assert tree(folder) == before
    assert not (folder / "c").exists()
    init(folder, "--truth", folder / "truth.tif", *FAST)
    run("sample", folder / "c")
    said = run("queue", "next", folder / "c", "-a", "anna", "--out", folder / "p")
    [hand_in] = re.findall(r"^hand in +rescueseg (.*)", said, re.MULTILINE)
    before = tree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "the disk is full. Free some space" in run(*shlex.split(hand_in), "--unchanged", code=1)
    assert tree(folder) == before
    campaign = Campaign.open(str(folder / "c"))
    assert open_queue(campaign).views.accepted() == []
    assert "accepted" in run(*shlex.split(hand_in), "--unchanged"), "with room again it goes through"


def in_small_file_system(folder: Path, kilobytes: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a file system of that size mounted on ``folder/small``, for its eyes only."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    (folder / "small").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs small"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], cwd=folder, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    command = ["unshare", "-rm", "sh", "-c", f"{mount} && {script}"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


RESCUESEG = f"{shlex.quote(sys.executable)} -c 'from rescueseg.cli.main import app; app()'"


def test_a_file_system_too_small_for_the_volume(folder: Path) -> None:
    script = f"{RESCUESEG} init small/c raw.tif --classes a --spacing {SPACING}; echo $?; find small -mindepth 1"
    done = in_small_file_system(folder, 60, script)
    assert done.stdout.splitlines() == ["1"], "refused, and nothing is left"
    assert done.stderr.startswith("Error: ")
    assert "the disk is full. Free some space" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_system_too_small_for_the_queue(folder: Path) -> None:
    script = (
        f"{RESCUESEG} init small/c raw.tif --classes a --spacing {SPACING} >&2 && head -c 9999999 /dev/zero 2>/dev/null"
        f" > small/ballast; {RESCUESEG} sample small/c; echo $?; ls small/c; rm small/ballast; {RESCUESEG} sample small/c"
    )
    done = in_small_file_system(folder, 1000, script)
    lines = done.stdout.splitlines()
    assert lines[0] == "1"
    assert not {"holdout.json", "starting.json"} & set(lines)
    assert "the disk is full. Free some space" in done.stderr
    assert "12 new tickets" in done.stdout, "with room again it goes through"


# what costs time -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_an_import_brings_and_changes_nothing(folder: Path) -> None:
    before = tree(folder)
    expected = (
        "volume 'raw', 16×64×64 voxels (zyx) of uint16, 0.25 × 0.1 × 0.1 µm, with ground truth, at most 219 KiB on disk"
    )
    said = init(folder, "--truth", folder / "truth.tif", "--dry-run")
    assert expected in said
    assert "Nothing was changed" in said
    assert "the voxel size is not known" in init(folder, "--dry-run", "--spacing", "", code=1)
    assert tree(folder) == before
    init(folder)
    before = tree(folder)
    shutil.copy(folder / "raw.tif", folder / "more.tif")
    said = run("add", folder / "c", folder / "more.tif", "--id", "later", "--spacing", SPACING, "--dry-run")
    assert "volume 'later'" in said
    assert tree(folder) == before | {"more.tif": before["raw.tif"]}
    run("add", folder / "c", folder / "more.tif", "--id", "later", "--spacing", SPACING)
    assert [v.volume_id for v in Campaign.open(str(folder / "c")).volumes.records()] == ["later", "raw"]


def test_a_long_import_is_seen_in_a_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LOG_SECONDS", 0.0)
    said = init(folder, "--truth", folder / "truth.tif")
    steps = re.findall(r"raw\.tif: step (\d) of (\d)", said)
    assert steps == [("0", "1"), *((str(step), "6") for step in range(1, 7))]


def test_a_terminal_shows_a_bar_that_vanishes() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, legacy_windows=False)
    with console.shown_progress(terminal) as show:
        show("a [stack].tif", 1, 3)
        time.sleep(0.3)
    assert "a [stack].tif" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K"), "the line is erased in the end"


@pytest.mark.parametrize(
    ("folder_name", "name"),
    [("my liver (2)", "my-liver-2"), ("über", "ber"), ("_", "campaign"), ("a.b_c-d", "a.b_c-d")],
)
def test_a_folder_of_any_name_gives_the_campaign_a_name(folder: Path, folder_name: str, name: str) -> None:
    run("init", folder / folder_name, folder / "raw.tif", "--classes", "a", "--spacing", SPACING)
    assert Campaign.open(str(folder / folder_name)).config.name == name
