"""`rescueseg simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescueseg.campaign import Campaign
from rescueseg.campaign.layout import CAMPAIGN_FILE
from rescueseg.cli.console import console, say_line, shown_progress
from rescueseg.cli.import_options import SpacingOption, parse_spacing
from rescueseg.cli.options import SetOption, option_groups
from rescueseg.errors import ConfigError
from rescueseg.geometry import Box
from rescueseg.records import LabelType

if TYPE_CHECKING:
    from rescueseg.simulation.annotated_volume import AnnotatedVolume
    from rescueseg.simulation.protocol import Setting
    from rescueseg.stages.simulate import Plan


@dataclass(frozen=True)
class SourceOptions:
    """What is said of the annotated volume."""

    truth: Annotated[str, typer.Option(metavar="FILE", help="Ground truth of an image file.")] = ""
    truth_type: Annotated[LabelType, typer.Option(help="What the truth's numbers mean.")] = "semantic"
    classes: Annotated[str, typer.Option(metavar="NAMES", help="Classes of an image file, by commas.")] = "structure"
    spacing: SpacingOption = ""
    volume: Annotated[str, typer.Option(metavar="ID", help="Volume of a campaign; the only one with truth.")] = ""
    data_dir: Annotated[str, typer.Option(help="Folder of example volumes that are here already.")] = ""
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the data set in the rows; that of the source when omitted.")
    ] = ""
    crop: Annotated[
        str, typer.Option(metavar="Z:Z,Y:Y,X:X", help="Part of the volume, in voxels; all of it when omitted.")
    ] = ""


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is compared, and how."""

    strategies: Annotated[
        list[str],
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="A strategy to compare; repeat the option. The usual controls when omitted.",
        ),
    ] = field(default_factory=list)
    regimes: Annotated[
        list[str],
        typer.Option(
            "--regime", metavar="NAME=PATCHES", help="A budget: patches annotated in all; repeat the option. [low=30]"
        ),
    ] = field(default_factory=list)
    loops: Annotated[
        int, typer.Option(min=2, help="Trainings of a strategy; each but the last is followed by a query.")
    ] = 5
    seeds: Annotated[str, typer.Option(metavar="N,N", help="Seeds; another process can run others.")] = "0,1,2,3"
    trainer: Annotated[str, typer.Option(help="Model family.")] = "monai_unet"
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every training, in place of --cpu-seconds.")] = None
    cpu_seconds: Annotated[
        float, typer.Option(min=1.0, help="Processor time of a training: measured once, and kept as steps.")
    ] = 120.0
    patch: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Shape of a patch in voxels; about 6000 voxels when omitted.")
    ] = ""
    mc_samples: Annotated[int, typer.Option(min=1, help="Dropout samples of a prediction.")] = 1
    tta_symmetries: Annotated[int, typer.Option(min=1, help="Symmetries of a prediction.")] = 2


@option_groups
def simulate(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Campaign whose volume has ground truth, image file, or example volume."),
    ],
    of_source: SourceOptions,
    benchmark: BenchmarkOptions,
    out: Annotated[Path, typer.Option(help="Folder of the benchmark; what is there is not done again.")] = Path(
        "benchmark"
    ),
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of rows; OUT/rows.jsonl when omitted.")
    ] = None,
    settings: SetOption = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many trainings and CPU hours are missing, and do nothing.")
    ] = False,
) -> None:
    """Compare query strategies on an annotated volume, with an annotator that draws the truth.

    Every strategy starts from the same patches and the same model, and is given equally many patches and steps. Killed and
    given again, it goes on; a kill loses at most the training that ran.
    """
    from rescueseg.stages.simulate import plan_setting, run_setting

    crop = parse_crop(of_source.crop)
    setting = make_setting(of_source.name or default_name(source), crop, benchmark, settings)
    file = out / "rows.jsonl" if rows is None else rows
    volume = read_source(source, of_source, crop)
    plan = plan_setting(setting, volume, out, file)
    say_line(f"{setting.dataset}: {'×'.join(map(str, volume.shape_zyx))} voxels (zyx), {_budgets(setting)}")
    say_line(describe(plan))
    if dry_run:
        say_line("Nothing was changed; run again without --dry-run")
        return
    with shown_progress(console) as progress:
        run_setting(setting, volume, out, file, say_line, progress)
    say_line(f"Rows: {file}")


def make_setting(dataset: str, crop: Box | None, options: BenchmarkOptions, settings: Sequence[str]) -> Setting:
    """Return the setting of a benchmark.

    Raises
    ------
    ConfigError
        If an option has a value that cannot be.
    """
    from pydantic import ValidationError

    from rescueseg.simulation.protocol import CONTROLS, Setting

    try:
        return Setting.model_validate(
            {
                "dataset": dataset,
                "regimes": [_regime(text) for text in options.regimes or ["low=30"]],
                "loops": options.loops,
                "seeds": [int(text) for text in options.seeds.split(",")],
                "strategies": options.strategies or CONTROLS,
                "trainer": options.trainer,
                "steps": options.steps,
                "cpu_seconds": options.cpu_seconds,
                "crop": crop,
                "patch_zyx": [int(text) for text in options.patch.split(",")] if options.patch else None,
                "mc_samples": options.mc_samples,
                "tta_symmetries": options.tta_symmetries,
                "settings": list(settings),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0]) if first["loc"] else "seeds and strategies"
        raise ConfigError(str(first["msg"]), where=option, todo="See 'rescueseg simulate --help'") from error
    except ValueError as error:
        raise ConfigError(str(error), where="--seeds, --patch", todo="Give whole numbers with commas") from error


def _regime(text: str) -> dict[str, object]:
    name, _, patches = text.partition("=")
    if not patches.isdecimal():
        raise ConfigError(f"'{text}' is no budget", where="--regime", todo="Such as low=30: a name, and patches in all")
    return {"name": name, "patches": int(patches)}


def parse_crop(text: str) -> Box | None:
    """Return the box of a ``Z:Z,Y:Y,X:X`` option, None when it is empty.

    Raises
    ------
    ConfigError
        If it is no box.

    Examples
    --------
    >>> str(parse_crop("0:64,100:356,0:256"))
    '[0:64, 100:356, 0:256]'
    """
    if not text:
        return None
    try:
        ranges = [[int(number) for number in part.split(":")] for part in text.split(",")]
        starts, stops = zip(*((a, b) for a, b in ranges), strict=True)
    except ValueError as error:
        raise _no_crop(text) from error
    if len(ranges) != 3 or min(starts) < 0 or any(a >= b for a, b in ranges):
        raise _no_crop(text)
    return Box.from_bounds(starts, stops)


def _no_crop(text: str) -> ConfigError:
    todo = "Three ranges of voxels, such as 0:64,0:256,0:256"
    return ConfigError(f"'{text}' is no part of a volume", where="--crop", todo=todo)


def default_name(source: str) -> str:
    """Return the name of a data set: that of the campaign's folder, of the image or of the example.

    Examples
    --------
    >>> default_name("/data/liver stack.ome.tif"), default_name("campaigns/liver/")
    ('liver-stack', 'liver')
    """
    from rescueseg.volumes.volume_files import default_id

    return default_id(source)[:63]


def read_source(source: str, options: SourceOptions, crop: Box | None) -> AnnotatedVolume:
    """Read the annotated volume: of a campaign, an image file with its truth, or an example.

    Raises
    ------
    RescuesegError
        If it cannot be read or has no truth.
    """
    from rescueseg.simulation.annotated_volume import read_campaign, read_files
    from rescueseg.volumes.examples import load_example
    from rescueseg.volumes.volume_files import VolumeImport

    if (Path(source) / CAMPAIGN_FILE.path()).is_file():
        return read_campaign(Campaign.open(source), options.volume, crop)
    if options.truth or Path(source).exists():
        image = VolumeImport(
            source,
            spacing=parse_spacing(options.spacing),
            truth=options.truth or None,
            truth_type=options.truth_type,
        )
        return read_files(image, [name.strip() for name in options.classes.split(",")], crop)
    example = load_example(source, options.data_dir or None)
    image = VolumeImport(
        example.raw_path, spacing=example.spacing, truth=example.truth_path, truth_type=example.truth_type
    )
    return read_files(image, example.classes, crop)


def _budgets(setting: Setting) -> str:
    parts = [
        f"{r.name}: {r.query_size(setting.loops)} patches at the start and in each of {setting.loops - 1} queries"
        for r in setting.regimes
    ]
    return "; ".join(parts)


def describe(plan: Plan) -> str:
    """Say what a run would do.

    Examples
    --------
    >>> from rescueseg.stages.simulate import Plan
    >>> describe(Plan(trainings=52, rows=64, steps=None, seconds=120.0))
    '52 trainings to run for 64 rows, 120 s of processor time each: about 1.7 CPU hours, and their predictions'
    """
    many = f"{plan.trainings} training{'' if plan.trainings == 1 else 's'} to run for {plan.rows} rows"
    length = f", {plan.steps:,} steps each" if plan.steps else ""
    if plan.cpu_hours is None:
        return f"{many}{length}: how many CPU hours that takes is said after the first one"
    time = f"{plan.seconds:.0f} s of processor time each: about {plan.cpu_hours:.1f} CPU hours, and their predictions"
    return f"{many}{length}, {time}"
