"""`rescueseg segment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import JsonValue

from rescueseg.campaign import Campaign
from rescueseg.cli.console import console, say_line
from rescueseg.cli.import_options import (
    AxesOption,
    HolesOption,
    PositionOption,
    SeriesOption,
    SpacingOption,
    parse_axes,
    parse_spacing,
)
from rescueseg.cli.options import CampaignArgument, option_groups

if TYPE_CHECKING:
    from rescueseg.delivery.folder import DeliveryFolder
    from rescueseg.delivery.request import SegmentRequest


class LabelFormat(StrEnum):
    """Files that labels are written to as well; Typer takes several values of an Enum alone."""

    tiff = "tiff"
    nifti = "nifti"
    nrrd = "nrrd"


@dataclass(frozen=True)
class FileOptions:
    """What is said of files that are no volumes of the campaign."""

    spacing: SpacingOption = ""
    axes: AxesOption = ""
    series: SeriesOption = None
    position: PositionOption = None
    accept_holes: HolesOption = False


@dataclass(frozen=True)
class ResultOptions:
    """What is delivered, and by which model."""

    generation: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Generation whose model predicts; that of the delivery, or the champion."
        ),
    ] = None
    training: Annotated[str, typer.Option(metavar="NAME", help="A training of 'rescueseg train' instead.")] = ""
    objects: Annotated[
        Literal["auto", "yes", "no"],
        typer.Option(help="Number objects; auto does as before, or where the campaign numbers them."),
    ] = "auto"
    boundary_class: Annotated[
        str, typer.Option(metavar="CLASS", help="Class that is the boundary between objects, such as a membrane.")
    ] = ""
    formats: Annotated[
        list[LabelFormat],
        typer.Option("--format", help="Write the labels so too, beside the OME-Zarr; repeat the option."),
    ] = field(default_factory=list)
    with_image: Annotated[
        bool | None,
        typer.Option("--with-image/--without-image", help="Copy the image beside the labels; a new delivery does."),
    ] = None
    review: Annotated[
        int, typer.Option(min=0, metavar="N", help="Queue the N most doubtful places for people to correct.")
    ] = 0


@option_groups
def segment(
    campaign: CampaignArgument,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Folder or URL of the delivery; one there is continued.")],
    results: ResultOptions,
    files: FileOptions,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VOLUME|FILE",
            help="Volumes of the campaign, or files and folders that never were in it; all that was delivered when omitted.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All volumes of the campaign.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take: voxels, disk, time; and change nothing.")
    ] = False,
) -> None:
    """Deliver finished masks, objects and tables of whole volumes, as OME-Zarr with a summary page.

    What is done is not done again. Given again after annotators have corrected the places of --review, it merges their
    corrections into the labels, and counts up the version.
    """
    from rescueseg.cli.flows import run_flow
    from rescueseg.delivery.estimate import estimate, require_room
    from rescueseg.delivery.folder import DeliveryFolder
    from rescueseg.delivery.request import SegmentRequest, check_request, sort_targets
    from rescueseg.services.prefect_api import SEGMENT_FLOW

    opened, folder = Campaign.open(campaign), DeliveryFolder(out)
    volumes, paths = sort_targets(opened, what or [], every, [volume.volume_id for volume in folder.delivered()])
    request = SegmentRequest(
        out=folder.storage.url,
        volumes=volumes,
        files=paths,
        spacing_um_zyx=parse_spacing(files.spacing),
        axes=parse_axes(files.axes),
        series=files.series,
        position=files.position,
        accept_holes=files.accept_holes,
        generation=results.generation,
        training=results.training,
        objects=results.objects,
        boundary_class=results.boundary_class,
        with_image=results.with_image,
        formats=tuple(form.value for form in results.formats),
        review=results.review,
    )
    request = check_request(opened, request)
    needed = estimate(opened, request)
    for line in needed.lines(folder):
        say_line(line)
    require_room(folder, needed)
    if dry_run:
        say_line("Nothing was changed; run again without --dry-run")
        return
    parameters: dict[str, JsonValue] = {"campaign_url": opened.url, "request": request.to_json()}
    run_flow(opened, SEGMENT_FLOW, parameters, console, progress=lambda: _step(folder))
    _show(folder, request)


def _step(folder: DeliveryFolder) -> str:
    from rescueseg.delivery.folder import PROGRESS

    note = folder.records.read(PROGRESS)
    return "" if note is None else f", {note[0]}: {note[1]} of {note[2]}"


def _show(folder: DeliveryFolder, request: SegmentRequest) -> None:
    """Print what was delivered, and where to look at it."""
    from rescueseg.delivery.records import DELIVERY

    delivery = folder.records.read(DELIVERY)
    for volume in folder.delivered():
        objects = "" if volume.objects is None else f", {volume.objects:,} objects"
        version = f", version {volume.version}" if volume.version > 1 else ""
        say_line(f"{volume.volume_id}: {'×'.join(map(str, volume.shape_zyx))} voxels (zyx){objects}{version}")
        for warning in volume.warnings:
            say_line(f"  Warning: {warning}", style="yellow")
    for score in delivery.scores if delivery else ():
        values = (score.most_likely, score.rule, score.delivered)
        most_likely, rule, delivered = ("none" if v is None else f"{v:.3f}" for v in values)
        say_line(f"Test {score.name}: {most_likely} most likely class, {rule} by threshold, {delivered} as delivered")
    if request.review and delivery:
        how = (
            "queue next CAMPAIGN, or annotate" if delivery.queued else "queue status CAMPAIGN tells of those that wait"
        )
        say_line(f"{delivery.queued} places were queued to be proofread: rescueseg {how}")
    if delivery and delivery.rule.objects and not any(t.what.startswith("objects:") for t in delivery.rule.trials):
        say_line("How objects are made was not chosen: the truth of no validation box numbers objects", style="yellow")
    say_line(f"Summary: {folder.storage.url_of('index.html')}")
    say_line(f"Look at it in napari: rescueseg view {folder.url}")
