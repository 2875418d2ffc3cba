"""The options of `rescueseg init` and `add` that say what volumes to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from rescueseg.errors import ConfigError
from rescueseg.image_files.slices import join_planes
from rescueseg.image_files.source import Statement
from rescueseg.records import LabelType

if TYPE_CHECKING:
    from rescueseg.volumes.volume_files import VolumeImport


SpacingOption = Annotated[
    str,
    typer.Option(metavar="Z,Y,X", help="Voxel size in micrometre, when the files do not say it or say it wrong."),
]
AxesOption = Annotated[
    str,
    typer.Option(
        metavar="LETTERS",
        help="Axes of the files in their order, when they do not say them: z, y, x, c (channel), t, p (position); such as czyx.",
    ),
]
SeriesOption = Annotated[
    int | None, typer.Option(metavar="N", help="Which image of a file that holds several, from 0.")
]
PositionOption = Annotated[
    int | None, typer.Option(metavar="N", help="Which position of a file that holds several, from 0.")
]

HolesOption = Annotated[
    bool,
    typer.Option(
        "--accept-holes",
        help="Take parts of a chunked file that are absent as they read, even where they look lost.",
    ),
]


@dataclass(frozen=True)
class ImportOptions:
    """What `init` and `add` are told of their volumes."""

    spacing: SpacingOption = ""
    ids: Annotated[
        list[str],
        typer.Option(
            "--id",
            metavar="NAME",
            help="Name of each volume in the campaign, in their order; made from the file's when omitted.",
        ),
    ] = field(default_factory=list)
    truth: Annotated[
        list[str], typer.Option(metavar="FILE", help="Ground truth of each volume, in their order; repeat the option.")
    ] = field(default_factory=list)
    truth_type: Annotated[LabelType, typer.Option(help="What the truth's numbers mean.")] = "semantic"
    domain: Annotated[
        str, typer.Option(help="Acquisition group of these volumes: same microscope, objective, bit depth, spacing.")
    ] = ""
    axes: AxesOption = ""
    series: SeriesOption = None
    position: PositionOption = None
    slices: Annotated[bool, typer.Option("--slices", help="The files given are the planes of one volume.")] = False
    accept_holes: HolesOption = False
    distinct: Annotated[
        bool,
        typer.Option(
            "--distinct",
            help="These volumes show other specimens than the near copies found; equal voxels are never distinct.",
        ),
    ] = False
    distinct_from: Annotated[
        list[str],
        typer.Option(
            "--distinct-from",
            metavar="NAME",
            help="The same of one near copy only: these volumes show another specimen than it; repeat the option.",
        ),
    ] = field(default_factory=list)
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say and show what the files hold and how much they take, and change nothing."),
    ] = False
    picture: Annotated[
        str,
        typer.Option(metavar="FILE.png", help="Where a dry run draws the volumes; a temporary folder when omitted."),
    ] = ""

    def imports(self, files: Sequence[str]) -> list[VolumeImport]:
        """Return the volumes that the files are to become.

        Raises
        ------
        ConfigError
            If there is not one truth or name for each volume, or an option has a value that cannot be.
        """
        from rescueseg.volumes.volume_files import VolumeImport

        paths = [join_planes(files)] if self.slices else list(files)
        said = Statement(parse_axes(self.axes), self.series, self.position, self.accept_holes)
        spacing = parse_spacing(self.spacing)
        check_picture(self.picture, self.dry_run)
        names, truths = one_each("--id", self.ids, len(paths)), one_each("--truth", self.truth, len(paths))
        return [
            VolumeImport(
                path,
                volume_id=name,
                domain=self.domain or None,
                spacing=spacing,
                truth=truth,
                truth_type=self.truth_type,
                said=said,
                distinct=self.distinct,
                distinct_from=self.distinct_from,
            )
            for path, name, truth in zip(paths, names, truths, strict=True)
        ]


def one_each(option: str, values: Sequence[str], count: int) -> Sequence[str | None]:
    """Return a value of an option for each of so many volumes: None for all where it was not given.

    Raises
    ------
    ConfigError
        If there are more or fewer.
    """
    if values and len(values) != count:
        raise ConfigError(
            f"{len(values)} given for {count} volumes", where=option, todo="Give one for each, in their order"
        )
    return values or [None] * count


def parse_axes(text: str) -> str:
    """Return the letters of ``--axes``.

    Raises
    ------
    ConfigError
        If a letter is not known, comes twice, or z, y and x are not among them.

    Examples
    --------
    >>> parse_axes("CZYX")
    'czyx'
    """
    letters = text.strip().lower()
    if letters and (set(letters) - set("zyxctp") or len(set(letters)) < len(letters) or not set("zyx") <= set(letters)):
        raise ConfigError(
            f"'{text}' names no axes",
            where="--axes",
            todo="One letter per axis in the file's order: z, y, x, c (channel), t, p (position); such as czyx",
        )
    return letters


def parse_spacing(text: str) -> tuple[float, float, float] | None:
    """Return the spacing of a ``Z,Y,X`` option, None when it is empty.

    Raises
    ------
    ConfigError
        If it is not three positive numbers.

    Examples
    --------
    >>> parse_spacing("0.3,0.1,0.1")
    (0.3, 0.1, 0.1)
    """
    if not text:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is no spacing", where="--spacing", todo="Three numbers in µm: Z,Y,X, such as 0.3,0.1,0.1"
        ) from error
    if min(z, y, x) <= 0:
        raise ConfigError(f"'{text}' is not positive", where="--spacing", todo="Three numbers in µm: Z,Y,X")
    return z, y, x


def check_picture(picture: str, dry_run: bool) -> None:
    """Refuse a picture that nobody would draw.

    Raises
    ------
    ConfigError
        If it is asked for without a dry run, or is no PNG.
    """
    if picture and (not dry_run or not picture.lower().endswith(".png")):
        raise ConfigError(
            "a dry run draws it, as PNG", where=f"--picture {picture}", todo="Add --dry-run, and end its name in .png"
        )
