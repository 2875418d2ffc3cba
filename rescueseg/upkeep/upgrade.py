"""What brings a campaign of an earlier version to this one: its queue, lists of its images' files, checksums of its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.route import freeze_choice
from rescueseg.campaign.stage_results import CHOICE, SNAPSHOT
from rescueseg.progress import Progress
from rescueseg.queue.upgrade import UpgradeStep, queue_steps
from rescueseg.storage import Storage
from rescueseg.upkeep.backup import files_of
from rescueseg.upkeep.verify import has_checksum, is_record
from rescueseg.volumes.image_check import seal_image


def upgrade_steps(campaign: Campaign, *, moved: bool = False, progress: Progress | None = None) -> list[UpgradeStep]:
    """Return what is to be done; nothing is changed yet.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    moved : bool
        As of `rescueseg.queue.upgrade.queue_steps`, which says what it raises.
    progress : callable, optional
        Called with a volume's id, the parts of it that were read, and how many there are.
    """
    files = [file.path for file in files_of(campaign)]
    images = image_steps(campaign.volumes, progress)
    return [
        *queue_steps(campaign, moved=moved),
        *images,
        *choice_steps(campaign),
        *record_steps(campaign.storage, files),
    ]


def image_steps(volumes: VolumeFolder, progress: Progress | None = None) -> list[UpgradeStep]:
    """Return the steps that list the files of images, so that damage is found; none where all are listed."""
    return [
        UpgradeStep(
            f"read volume '{volume.volume_id}' and list its files with their checksums",
            partial(_seal, volumes, volume.volume_id, progress),
        )
        for volume in volumes.records(refused=True)
        if not volume.files
    ]


def choice_steps(campaign: Campaign) -> list[UpgradeStep]:
    """Return the steps that freeze trainer and strategy of generations begun before they were kept; mostly none."""
    return [
        UpgradeStep(
            f"note trainer and query strategy of generation {folder.number}",
            partial(freeze_choice, campaign, folder.number),
        )
        for folder in campaign.generations()
        if folder.has(SNAPSHOT) and not folder.has(CHOICE)
    ]


def record_steps(storage: Storage, files: Iterable[str]) -> list[UpgradeStep]:
    """Return the step that gives records a checksum; none where all have one."""
    paths = [path for path in files if is_record(path) and not has_checksum(storage, path)]
    if not paths:
        return []
    return [UpgradeStep(f"give {len(paths)} records a checksum", partial(_write_again, storage, paths))]


def _write_again(storage: Storage, paths: Sequence[str]) -> None:
    for path in paths:
        storage.write_json(path, storage.read_json(path))


def _seal(volumes: VolumeFolder, volume_id: str, progress: Progress | None) -> None:
    seal_image(volumes, volume_id, None if progress is None else partial(progress, volume_id))
