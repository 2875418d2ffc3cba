"""Files that never were in the campaign: which they are, imported below the delivery, on the model's intensity scale.

They are judged as `rescueseg check` would judge them beside the volumes that the model has learned from: one that belongs to
a domain of theirs is mapped to its scale, one that is unlike all of them gets a scaling of its own and a warning with numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rescueseg.campaign import Campaign
from rescueseg.campaign.campaign_file import dump_config
from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.layout import CAMPAIGN_FILE, check_id
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.source_digest import source_digest
from rescueseg.errors import ConfigError, InvalidVolumeError, RescuesegError, UnreadableVolumeError, VolumeError
from rescueseg.image_files.registry import open_source
from rescueseg.image_files.slices import is_planes, shown
from rescueseg.image_files.source import Statement
from rescueseg.progress import Progress
from rescueseg.records import Record, VolumeRecord
from rescueseg.storage import Storage
from rescueseg.volumes.consistency import judge
from rescueseg.volumes.describe import Measurement, measure_volume
from rescueseg.volumes.opening import open_image
from rescueseg.volumes.volume_files import VolumeImport
from rescueseg.volumes.volume_import import import_volume


class NewVolume(Record):
    """A file that was imported for a delivery, and how it lies to what the model has learned."""

    record: VolumeRecord
    path: str
    source: str
    """What the file is known again by (`rescueseg.delivery.source_digest`): another one of this name is refused."""
    likeness: str
    """How it was brought to what the model has learned, in a sentence: resampled, its intensities mapped, or scaled alone."""
    warnings: tuple[str, ...] = ()


def new_volume(folder: DeliveryFolder, volume_id: str) -> NewVolume | None:
    """Return what was imported for a delivery under a name, None where nothing was."""
    return RecordFolder(Storage(folder.work_url())).read(_file(volume_id))


def _file(volume_id: str) -> RecordFile[NewVolume]:
    return RecordFile(f"new/{check_id(volume_id, 'volume id')}", NewVolume)


def expand(paths: Sequence[str], template: VolumeImport) -> tuple[list[VolumeImport], list[str]]:
    """Return the volumes that files and folders hold.

    Parameters
    ----------
    paths : sequence of str
        Files of any format, OME-Zarr URLs, or folders: of volumes, each of which becomes one, or of the planes of one.
    template : VolumeImport
        What is said of all of them: spacing, axes.

    Returns
    -------
    imports : list of VolumeImport
        One per volume.
    passed_over : list of str
        One line for each file of a folder that is no volume.

    Raises
    ------
    UnreadableVolumeError
        If a path is missing, or a folder holds nothing that can be read.
    ConfigError
        If two would have one name.
    """
    imports: list[VolumeImport] = []
    passed_over: list[str] = []
    for path in paths:
        if Path(path).is_dir() and is_planes(path):
            inside, strange = _volumes_in(path, template)
            imports += inside
            passed_over += strange
        else:
            imports.append(replace(template, path=path))
    path_of: dict[str, str] = {}
    for volume in imports:
        if volume.name in path_of:
            raise ConfigError(
                f"two volumes would be called '{volume.name}'",
                where=f"{shown(path_of[volume.name])} and {shown(volume.path)}",
                todo="Rename one of the files, or deliver it elsewhere",
            )
        path_of[volume.name] = volume.path
    return imports, passed_over


def _volumes_in(folder: str, template: VolumeImport) -> tuple[list[VolumeImport], list[str]]:
    """Return the volumes of a folder; the folder itself where it holds planes alone."""
    volumes, strange, flat = [], [], 0
    for entry in sorted(Path(folder).iterdir()):
        if entry.name.startswith("."):
            continue
        volume = replace(template, path=str(entry))
        try:
            open_source(volume.path, volume.said or Statement()).close()
            volumes.append(volume)
        except InvalidVolumeError as error:
            flat += 1
            strange.append(f"{entry.name}: {error.what}")
        except RescuesegError as error:
            strange.append(f"{entry.name}: {error.what}")
    if not volumes and flat > 1:
        return [replace(template, path=folder)], []
    if not volumes:
        raise UnreadableVolumeError(
            "the folder holds no volume that can be read",
            where=folder,
            todo="Name a folder of 3D files, or of the planes of one volume" + (f" ({strange[0]})" if strange else ""),
        )
    return volumes, strange


@dataclass(frozen=True)
class NewVolumes:
    """Where files that are no volumes of the campaign go, and what they are compared with.

    Parameters
    ----------
    campaign : Campaign
        Whose model predicts them.
    folder : DeliveryFolder
        They lie in its work folder, which has the shape of a campaign.
    trained : frozenset of str
        Volumes that the model has learned from.
    """

    campaign: Campaign
    folder: DeliveryFolder
    trained: frozenset[str]

    @property
    def work(self) -> Campaign:
        """The work folder as a campaign; its settings say neither where the queue nor where MLflow is."""
        config = self.campaign.config.model_copy(
            update={"database_url": "", "tracking": type(self.campaign.config.tracking)()}
        )
        storage = Storage(self.folder.work_url())
        if not storage.exists(CAMPAIGN_FILE.path()):
            storage.write_bytes(CAMPAIGN_FILE.path(), dump_config(config).encode())
        return Campaign(storage, config)

    def add(self, volume: VolumeImport, progress: Progress | None = None) -> NewVolume:
        """Import a file, and bring it to the intensity scale of the model's domain; done once per file.

        Raises
        ------
        VolumeError
            If its name is that of a volume of the campaign, it holds no image, or other channels than the model reads.
        RescuesegError
            As `rescueseg.volumes.volume_import.import_volume`.
        """
        work, source = self.work, source_digest(volume)
        known = new_volume(self.folder, volume.name)
        if known is not None and known.source == source and volume.name in work.volumes.ids():
            return known  # also when it has joined the campaign since, for review
        if volume.name in self.campaign.volumes.ids():
            raise VolumeError(
                f"the campaign has a volume '{volume.name}' already",
                where=volume.path,
                todo="Name the volume instead of the file, or rename the file",
            )
        if known is not None and known.source != source:
            raise VolumeError(
                f"another file was delivered as '{volume.name}', or this one has changed since",
                where=volume.path,
                todo="Choose another --out, or rename the file",
            )
        report = None if progress is None else lambda done, total: progress(f"import {volume.name}", done, total)
        record = import_volume(work, volume, report)
        new = self._judged(work, record, volume.path, source)
        work.volumes.save(new.record)
        work.records.write(_file(volume.name), new)
        return new

    def _judged(self, work: Campaign, record: VolumeRecord, path: str, source: str) -> NewVolume:
        measurement = _measure(work, record)
        report = judge(self.campaign, [*self._trained_measurements(), measurement], self.trained)
        verdict = next(v for v in report.volumes if v.volume_id == record.volume_id)
        if verdict.verdict == "refuse":
            raise VolumeError(
                verdict.reason, where=path, todo="Deliver the other files; this one needs a model of its own"
            )
        normalisation = next(d.volumes[record.volume_id] for d in report.domains.domains if d.name == verdict.domain)
        warnings, likeness = list(verdict.warnings), verdict.reason
        if verdict.domain not in {v.domain for v in report.volumes if v.volume_id in self.trained}:
            warnings.insert(
                0, f"unlike what the model has learned: {verdict.reason}. Look at its result before you use it"
            )
            likeness += "; scaled by its own intensities"
        update = {"normalisation": normalisation, "domain": verdict.domain}
        return NewVolume(
            record=record.model_copy(update=update),
            path=path,
            source=source,
            likeness=likeness,
            warnings=tuple(warnings),
        )

    def _trained_measurements(self) -> list[Measurement]:
        records = [r for r in self.campaign.volumes.records() if r.volume_id in self.trained]
        return [_measure(self.campaign, record) for record in records]


def _measure(campaign: Campaign, record: VolumeRecord) -> Measurement:
    image = open_image(campaign.volumes, record.volume_id)
    return measure_volume(record, image, image.chunks[-3:])
