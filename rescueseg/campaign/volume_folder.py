"""The volumes of a campaign: their records and images, what they share, and their domains."""

from __future__ import annotations

from collections.abc import Sequence

from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.layout import IMAGE, VOLUME, check_id, is_id
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import CampaignError, StorageError, damaged
from rescueseg.geometry import Spacing
from rescueseg.records import Domain, Domains, Relations, VolumeRecord
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import Storage

RELATIONS = RecordFile("relations", Relations)
DOMAINS = RecordFile("domains", Domains)
_RECORD = RecordFile("volume", VolumeRecord)


class VolumeFolder:
    """The volumes of a campaign.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._root = RecordFolder(storage)
        self._unsaved_relations: Relations | None = None

    @property
    def url(self) -> str:
        """Where the campaign lives; absolute."""
        return self.storage.url

    def records(self, *, refused: bool = False) -> list[VolumeRecord]:
        """Return the records of the volumes that may be used, by id; with `refused`, of all.

        Raises
        ------
        StorageError
            If one is damaged, or something else lies among them.
        """
        records = [self._read(volume_id) for volume_id in self.ids()]
        return [record for record in records if refused or not record.refused]

    def ids(self) -> list[str]:
        """Return the ids of all volumes, refused ones too; no record is read.

        Raises
        ------
        StorageError
            If something else lies among the records.
        """
        names = [n for n in self.storage.list(VOLUME.top) if n.endswith(".json") and not n.startswith(".")]
        if strange := [name for name in names if not is_id(name.removesuffix(".json"))]:
            raise StorageError(
                "this file is no record of a volume",
                where="/".join((self.storage.path(VOLUME.top), strange[0])),
                todo="Move it out of the campaign",
            )
        return [name.removesuffix(".json") for name in names]

    def _read(self, volume_id: str) -> VolumeRecord:
        path = VOLUME.path(volume=volume_id)
        record = _RECORD.parse(self.storage.read_json(path), self.storage.name_of(path))
        if record.volume_id != volume_id:
            raise damaged(self.storage.path(path), f"it holds the record of volume '{record.volume_id}'")
        return record

    def record(self, volume_id: str) -> VolumeRecord:
        """Return the record of one volume.

        Raises
        ------
        CampaignError
            If the campaign has no such volume.
        StorageError
            If its record is damaged, or another volume's.
        """
        if not self.storage.exists(VOLUME.path(volume=check_id(volume_id, "volume id"))):
            names = ", ".join(v.volume_id for v in self.records(refused=True)) or "none yet"
            raise CampaignError(f"no volume '{volume_id}'", where=self.url, todo=f"Volumes: {names}")
        return self._read(volume_id)

    def save(self, record: VolumeRecord) -> None:
        """Write a volume's record; from then on it belongs to the campaign."""
        self.storage.write_json(VOLUME.path(volume=check_id(record.volume_id, "volume id")), record.to_json())

    def image_url(self, volume_id: str) -> str:
        """Return the URL of a volume's OME-Zarr image."""
        return self.storage.url_of(IMAGE.path(volume=check_id(volume_id, "volume id")))

    # what they share ----------------------------------------------------------------------------------------------

    def shared_places(self, records: Sequence[VolumeRecord] | None = None) -> SharedPlaces:
        """Return which places of the volumes are the same piece of the specimen, refused volumes included.

        Parameters
        ----------
        records : sequence of VolumeRecord, optional
            Of all volumes, refused ones too; read where omitted.

        Raises
        ------
        CampaignError
            If volumes were never compared with the others; `rescueseg.volumes.comparison.ensure_compared` does it.
        """
        relations, volumes = self.relations(), self.records(refused=True) if records is None else records
        if names := relations.uncompared(volumes):
            raise CampaignError(
                f"nobody knows what these volumes share with others, as they were never compared: {', '.join(names)}",
                where=self.url,
                todo="Run 'rescueseg check CAMPAIGN'",
            )
        return relations.shared_places(volumes)

    def relations(self) -> Relations:
        """Return what the comparison of the volumes found; see `rescueseg.volumes.comparison`."""
        return self._unsaved_relations or self._root.read(RELATIONS) or Relations()

    def save_relations(self, relations: Relations, *, write: bool = True) -> None:
        """Write what the comparison of the volumes found; without `write`, in a dry run, only this object knows it."""
        self._unsaved_relations = None if write else relations
        if write:
            self._root.write(RELATIONS, relations)

    # domains ------------------------------------------------------------------------------------------------------

    def domains(self) -> Domains:
        """Return the recorded domains; none before the first check was applied."""
        return self._root.read(DOMAINS) or Domains()

    def save_domains(self, domains: Domains) -> None:
        """Record the domains, then bring the volumes' records into line with them."""
        self._root.write(DOMAINS, domains)
        self.apply_domains()

    def apply_domains(self) -> None:
        """Rewrite the volume records that differ from the recorded domains: those a killed `save_domains` left."""
        domains = self.domains()
        for record in self.records(refused=True):
            if (updated := _in_domain(record, domains)) != record:
                self.save(updated)

    def working_spacing(self, record: VolumeRecord) -> Spacing:
        """Return the spacing a volume is resampled to: its domain's, its own where no domain is recorded."""
        domain = self.domains().of(record.volume_id)
        return domain.spacing_um_zyx if domain else record.spacing_um_zyx


def _in_domain(record: VolumeRecord, domains: Domains) -> VolumeRecord:
    """Return a volume's record as the recorded domains would have it."""
    domain: Domain | None = domains.of(record.volume_id)
    reason = domains.refused.get(record.volume_id, "")
    if domain is None:
        return record.model_copy(update={"refused": reason}) if reason else record
    return record.model_copy(
        update={"refused": reason, "domain": domain.name, "normalisation": domain.volumes[record.volume_id]}
    )
