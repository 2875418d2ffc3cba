"""The campaigns of a benchmark of query strategies: one for each regime and seed, which all strategies share.

Its holdout and its starting patches are drawn as in any campaign. There is no queue: the annotator is a program, and every
strategy has its own annotations, which lie beside the training that they were made for.
"""

from __future__ import annotations

import fcntl
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rescueseg.annotation.label_files import store_labels
from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.campaign_file import settings_of
from rescueseg.campaign.record_file import RecordFile
from rescueseg.config import CampaignConfig
from rescueseg.errors import ConfigError, EvaluationError, SamplingError
from rescueseg.geometry import Box, Patch, isotropic_shape
from rescueseg.labels import IGNORE, PatchLabels, corrected_voxels
from rescueseg.models.registry import complete_families, find_entry
from rescueseg.records import AcceptedAnnotation, QueriedPatch
from rescueseg.sampling.patches import count_places, patch_shape
from rescueseg.sampling.starting_patches import draw_holdout, starting_patches
from rescueseg.simulation.annotated_volume import VOLUME, AnnotatedVolume
from rescueseg.simulation.annotator import LabelDrawer
from rescueseg.simulation.protocol import Regime, Setting, default_patch
from rescueseg.stages.ticket_making import make_ticket
from rescueseg.storage import Storage
from rescueseg.volumes import open_truth
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.volumes.volume_import import import_volume

DECIDED = (
    "seed",
    "training.trainer",
    "training.iterations",
    "training.warm_start",
    "sampling.patch_zyx",
    "sampling.starting_patches",
    "sampling.query_patches",
)
"""Settings of a campaign that follow from the benchmark's."""
VALIDATION_BOXES, TEST_BOXES = 4, 8
HOLDOUT_SHARE = 0.1
"""Of the volume, for all boxes together, their guard bands not counted."""
SETTING = RecordFile("simulation", Setting)
"""Beside the campaign: what its rows were made with; see `Setting.identity`."""
ANNOTATIONS = RecordFile("annotations", tuple[AcceptedAnnotation, ...])
"""In the folder of a training: what was annotated for it, beyond what was there."""


def place_of(folder: Path, setting: Setting, regime: Regime, seed: int) -> Path:
    """Return the folder of the campaign of a regime and a seed, and of what lies beside it."""
    return folder / setting.dataset / f"{regime.name}-{seed}"


@contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the same work; the system lifts the lock when this one dies.

    Raises
    ------
    EvaluationError
        If another process holds it, and it is not to be waited for.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise EvaluationError(
                "another process works on this regime and seed", where=str(file.parent), todo="Give it other seeds"
            ) from error
        yield


def campaign_settings(setting: Setting, regime: Regime, seed: int, volume: AnnotatedVolume) -> CampaignConfig:
    """Return the settings of a campaign.

    Raises
    ------
    ConfigError
        If the trainer or one of the further settings is not valid, or the benchmark decides it.
    """
    if taken := [pair for pair in setting.settings if pair.partition("=")[0].strip() in DECIDED]:
        raise ConfigError(
            f"a benchmark decides '{taken[0].partition('=')[0]}'",
            where="--set",
            todo="Use the option of its own, or leave it",
        )
    patch = setting.patch_zyx or default_patch(volume.spacing_um_zyx, volume.shape_zyx)
    voxels = int(HOLDOUT_SHARE * math.prod(volume.shape_zyx) / (VALIDATION_BOXES + TEST_BOXES))
    box = isotropic_shape(volume.spacing_um_zyx, max(1, voxels), volume.shape_zyx)
    query = regime.query_size(setting.loops)
    pairs = [
        f"seed={seed}",
        f"training.trainer={setting.trainer}",
        "training.threads=1",
        f"annotation.labels={'instance' if find_entry(setting.trainer).needs_instances else 'semantic'}",
        f"sampling.patch_zyx={list(patch)}",
        f"sampling.starting_patches={query}",
        f"sampling.query_patches={query}",
        f"holdout.box_zyx={list(box)}",
        f"holdout.validation_boxes={VALIDATION_BOXES}",
        f"holdout.test_boxes={TEST_BOXES}",
        f"inference.mc_samples={setting.mc_samples}",
        f"inference.tta_symmetries={setting.tta_symmetries}",
        "inference.forward=eager",  # the fastest way is measured, and another one rounds otherwise
        f"stopping.max_generations={setting.loops}",
        *setting.settings,
    ]
    return complete_families(settings_of("simulation", volume.classes, pairs), "--set")


def open_or_make(place: Path, setting: Setting, regime: Regime, seed: int, volume: AnnotatedVolume) -> Campaign:
    """Return the campaign of a regime and a seed, with its holdout and its starting patches annotated; make it where it is not.

    Raises
    ------
    EvaluationError
        If one is there that was made with another setting.
    SamplingError
        If the volume has no room for the holdout and for all patches that are to be annotated, or the test boxes or what lies
        beside the holdout hold no voxel of a class.
    """
    beside, wanted = RecordFolder(Storage(str(place))), setting.identity(regime)
    made, url = beside.read(SETTING), str(place / "campaign")
    if made is not None:
        if made != wanted:
            names = [n for n in type(made).model_fields if getattr(made, n) != getattr(wanted, n)]
            raise EvaluationError(
                f"it was made with another setting ({', '.join(names)})",
                where=str(place),
                todo="Ask for the same, or give the data set another name with --name",
            )
        return Campaign.open(url)
    shutil.rmtree(url, ignore_errors=True)  # what a kill left of it
    campaign = Campaign.create(url, campaign_settings(setting, regime, seed, volume))
    import_volume(campaign, volume.write(place / "files"))
    shutil.rmtree(place / "files")
    ensure_compared(campaign.volumes)
    draw_holdout(campaign)
    _require_room(campaign, regime.query_size(setting.loops) * setting.loops)
    _require_structure(campaign)
    start = starting_patches(campaign)
    campaign.save_starting_patches(start)
    beside.write(SETTING, wanted)
    return campaign


def _require_room(campaign: Campaign, wanted: int) -> None:
    record, places, holdout = campaign.volumes.record(VOLUME), campaign.volumes.shared_places(), campaign.holdout()
    assert holdout is not None, "it was just drawn"
    shapes = {VOLUME: patch_shape(campaign.config, record, holdout)}
    room = count_places([record], shapes, {VOLUME: holdout.guarded(VOLUME, places)}, places, wanted)
    if room < wanted:
        raise SamplingError(
            f"{room} patches fit beside the holdout, {wanted} are to be annotated",
            where=campaign.url,
            todo="Ask for fewer patches or smaller ones, or take a larger crop",
        )


def _require_structure(campaign: Campaign) -> None:
    """Refuse a holdout by which no training could be judged, before any is run."""
    holdout, pool = campaign.holdout(), is_foreground(read_truth(campaign))
    assert holdout is not None, "it was just drawn"
    has_test = any(pool[box.box.slices].any() for box in holdout.boxes if box.part == "test")
    for box in guarded_boxes(campaign):
        pool[box.slices] = False
    for place, has_structure in (("in the test boxes", has_test), ("beside the holdout", bool(pool.any()))):
        if not has_structure:
            raise SamplingError(
                f"no voxel {place} belongs to a class",
                where=campaign.url,
                todo="Take another crop, or other seeds",
            )


def is_foreground(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell which voxels belong to a class: neither background nor unknown.

    Examples
    --------
    >>> is_foreground(np.array([0, 1, 2, 255], np.uint8)).tolist()
    [False, True, True, False]
    """
    return np.asarray((labels > 0) & (labels != IGNORE))


def guarded_boxes(campaign: Campaign) -> list[Box]:
    """Return the holdout boxes with their guard band, cut to the volume."""
    holdout, places = campaign.holdout(), campaign.volumes.shared_places()
    assert holdout is not None, "every campaign of a benchmark has one"
    shape = campaign.volumes.record(VOLUME).shape_zyx
    return [box.clip(shape) for box in holdout.guarded(VOLUME, places)]


def annotate(
    campaign: Campaign,
    loop: int,
    patches: Sequence[QueriedPatch],
    masks: Sequence[npt.NDArray[np.uint8] | None],
) -> tuple[AcceptedAnnotation, ...]:
    """Let the simulated annotator draw patches, and store the labels.

    Parameters
    ----------
    campaign : Campaign
        Its volume came with truth.
    loop : int
        Whose training is the first that reads them.
    patches : sequence of QueriedPatch
        Where.
    masks : sequence of ndarray of uint8 or None, zyx
        What the annotator starts from in each; nothing where None.
    """
    drawer, numbered = LabelDrawer(campaign), campaign.config.annotation.labels == "instance"
    accepted = []
    for patch, mask in zip(patches, masks, strict=True):
        ticket = make_ticket(
            campaign.config,
            loop,
            Patch(patch.volume_id, patch.box),
            "pool",
            stratum=patch.stratum,
            reason=patch.reason,
            score=patch.score,
        )
        labels = drawer.draw_labels(ticket)
        first = np.zeros(patch.box.shape_zyx, np.uint8) if mask is None else mask
        corrected = corrected_voxels(labels, PatchLabels.of_components(first) if numbered else PatchLabels(first))
        stored = store_labels(campaign.storage, ticket.ticket_id, labels, corrected)
        accepted.append(
            AcceptedAnnotation(
                ticket_id=ticket.ticket_id,
                volume_id=ticket.volume_id,
                box=ticket.box,
                purpose="pool",
                generation=loop,
                stratum=ticket.stratum,
                annotation_id=f"{ticket.ticket_id}-1",
                version=1,
                labels=stored.classes.path,
                labels_digest=stored.classes.digest,
                annotator="simulated",
                tool="simulated",
                seconds=drawer.options.seconds(corrected),
                voxels_corrected=corrected,
                instances=stored.instances.path if stored.instances else None,
                instances_digest=stored.instances.digest if stored.instances else None,
            )
        )
    return tuple(accepted)


def read_truth(campaign: Campaign) -> npt.NDArray[np.uint8]:
    """Return the classes of the whole volume, uint8 zyx."""
    return np.asarray(open_truth(campaign.volumes, VOLUME)[:], np.uint8)
