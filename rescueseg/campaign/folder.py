"""Paths and records of a campaign's folder. The only module that reads and writes by the layout; see `rescueseg.campaign.layout`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from rescueseg.campaign.layout import STAGES, check_id
from rescueseg.campaign.private_folder import cache_folder, private_folder
from rescueseg.campaign.record_file import RecordFile, T
from rescueseg.campaign.stage_results import PROGRESS, SNAPSHOT, TRAINING
from rescueseg.config import CampaignConfig
from rescueseg.errors import CampaignError
from rescueseg.geometry import Box, Patch, Spacing
from rescueseg.records import Domains, Holdout, ModelReference, QueriedPatch, Relations, Snapshot, VolumeRecord
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import Storage, digest_json


class CampaignFolder:
    """Paths and records below a campaign's URL.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    config : CampaignConfig
        Its settings.
    """

    def __init__(self, storage: Storage, config: CampaignConfig) -> None:
        self.storage = storage
        self.config = config
        self._unsaved_relations: Relations | None = None

    @property
    def url(self) -> str:
        """Where the campaign lives; absolute."""
        return self.storage.url

    @cached_property
    def database_url(self) -> str | URL:
        """SQLAlchemy URL of the queue; an object for the campaign's own file, whose path may hold any character."""
        return self.config.database_url or URL.create("sqlite", database=self.storage.path("campaign.db"))

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI to use when neither the config nor the environment names one."""
        return f"sqlite:///{self.storage.path('mlflow.db')}"

    @property
    def services_folder(self) -> Path:
        """Folder of the local servers and their logs.

        Raises
        ------
        CampaignError
            If the campaign is not on the local disk.
        """
        if not self.storage.is_local:
            raise CampaignError(
                "local servers need a campaign on the local disk",
                where=self.url,
                todo="Run the servers from infra/compose.yaml, or use a local folder",
            )
        return Path(self.storage.path("services"))

    # records ------------------------------------------------------------------------------------------------------

    def read(self, file: RecordFile[T], folder: str = "") -> T | None:
        """Return what a file holds, None where there is none.

        Parameters
        ----------
        file : RecordFile
            Which one.
        folder : str
            Where it lies below the campaign.

        Raises
        ------
        StorageError
            If it is damaged, holds something else, or a later version wrote it.
        """
        path = file.path(folder)
        return file.parse(self.storage.read_json(path), self.storage.path(path)) if self.storage.exists(path) else None

    def write(self, file: RecordFile[T], value: T, folder: str = "") -> None:
        """Write a file atomically; parameters as of `read`."""
        self.storage.write_json(file.path(folder), file.to_json(value))

    # volumes ------------------------------------------------------------------------------------------------------

    def volumes(self, *, refused: bool = False) -> list[VolumeRecord]:
        """Return the records of the volumes that may be used, by id; with `refused`, of all."""
        names = (n for n in self.storage.list("volumes") if n.endswith(".json") and not n.startswith("."))
        records = [VolumeRecord.model_validate(self.storage.read_json(f"volumes/{n}")) for n in names]
        return [record for record in records if refused or not record.refused]

    def shared_places(self) -> SharedPlaces:
        """Return which places of the volumes are the same piece of the specimen, refused volumes included.

        Raises
        ------
        CampaignError
            If volumes were never compared with the others; `rescueseg.volumes.comparison.ensure_compared` does it.
        """
        known, volumes = self.relations(), self.volumes(refused=True)
        if names := known.uncompared(volumes):
            raise CampaignError(
                f"nobody knows what these volumes share with others, as they were never compared: {', '.join(names)}",
                where=self.url,
                todo="Run 'rescueseg check CAMPAIGN'",
            )
        return known.shared_places(volumes)

    def relations(self) -> Relations:
        """Return what the comparison of the volumes found; see `rescueseg.volumes.comparison`."""
        if self._unsaved_relations is not None:
            return self._unsaved_relations
        known = self.storage.exists("relations.json")
        return Relations.model_validate(self.storage.read_json("relations.json")) if known else Relations()

    def save_relations(self, relations: Relations, *, write: bool = True) -> None:
        """Write what the comparison of the volumes found; without `write`, in a dry run, only this object knows it."""
        self._unsaved_relations = None if write else relations
        if write:
            self.storage.write_json("relations.json", relations.to_json())

    def volume(self, volume_id: str) -> VolumeRecord:
        """Return the record of one volume.

        Raises
        ------
        CampaignError
            If the campaign has no such volume.
        """
        path = f"volumes/{check_id(volume_id, 'volume id')}.json"
        if not self.storage.exists(path):
            names = ", ".join(v.volume_id for v in self.volumes(refused=True)) or "none yet"
            raise CampaignError(f"no volume '{volume_id}'", where=self.url, todo=f"Volumes: {names}")
        return VolumeRecord.model_validate(self.storage.read_json(path))

    def save_volume(self, record: VolumeRecord) -> None:
        """Write a volume's record; from then on it belongs to the campaign."""
        self.storage.write_json(f"volumes/{check_id(record.volume_id, 'volume id')}.json", record.to_json())

    def image_url(self, volume_id: str) -> str:
        """Return the URL of a volume's OME-Zarr image."""
        return self.storage.url_of(f"volumes/{check_id(volume_id, 'volume id')}.ome.zarr")

    # domains ------------------------------------------------------------------------------------------------------

    def domains(self) -> Domains:
        """Return the recorded domains; none before the first check was applied."""
        if not self.storage.exists("domains.json"):
            return Domains()
        return Domains.model_validate(self.storage.read_json("domains.json"))

    def save_domains(self, domains: Domains) -> None:
        """Record the domains, then bring the volumes' records into line with them."""
        self.storage.write_json("domains.json", domains.to_json())
        self.apply_domains()

    def apply_domains(self) -> None:
        """Rewrite the volume records that differ from the recorded domains: those a killed `save_domains` left."""
        domains = self.domains()
        for record in self.volumes(refused=True):
            domain, reason = domains.of(record.volume_id), domains.refused.get(record.volume_id, "")
            fields: dict[str, Any] = {"refused": reason} if domain or reason else {}
            if domain is not None:
                fields |= {"domain": domain.name, "normalisation": domain.volumes[record.volume_id]}
            if (updated := record.model_copy(update=fields)) != record:
                self.save_volume(updated)

    def working_spacing(self, record: VolumeRecord) -> Spacing:
        """Return the spacing a volume is resampled to: its domain's, its own where no domain is recorded."""
        domain = self.domains().of(record.volume_id)
        return domain.spacing_um_zyx if domain else record.spacing_um_zyx

    # triage -------------------------------------------------------------------------------------------------------

    def rough_patches(self) -> list[Patch]:
        """Return the patches whose labels the triage looked at; they count as annotated and are never held out."""
        stored = self.storage.read_json("rough.json") if self.storage.exists("rough.json") else []
        return [Patch(d["volume_id"], Box.from_dict(d["box"])) for d in stored]

    def save_rough_patches(self, patches: Sequence[Patch]) -> None:
        """Write the patches whose labels the triage looks at, before it looks."""
        self.storage.write_json("rough.json", [{"volume_id": p.volume_id, "box": p.box.to_dict()} for p in patches])

    # holdout ------------------------------------------------------------------------------------------------------

    def holdout(self) -> Holdout | None:
        """Return the frozen holdout, None before the first sampling."""
        if not self.storage.exists("holdout.json"):
            return None
        return Holdout.model_validate(self.storage.read_json("holdout.json"))

    def freeze_holdout(self, holdout: Holdout) -> None:
        """Write the holdout; a later one may only add boxes.

        Raises
        ------
        CampaignError
            If a frozen box would change or vanish.
        """
        frozen = self.holdout()
        if frozen is not None and not holdout.continues(frozen):
            raise CampaignError(
                "the holdout is frozen and may only grow", where=self.url, todo="Add boxes, keep the others as they are"
            )
        self.storage.write_json("holdout.json", holdout.to_json())

    def holdout_digest(self) -> str:
        """Return the digest of the frozen holdout, empty when there is none."""
        holdout = self.holdout()
        return digest_json(holdout.to_json()) if holdout else ""

    def starting_patches(self) -> list[QueriedPatch] | None:
        """Return the patches that generation 0 is trained on, None before they were drawn."""
        if not self.storage.exists("starting.json"):
            return None
        return [QueriedPatch.model_validate(data) for data in self.storage.read_json("starting.json")]

    def save_starting_patches(self, patches: Sequence[QueriedPatch]) -> None:
        """Write the starting patches."""
        self.storage.write_json("starting.json", [patch.to_json() for patch in patches])

    # weak labels --------------------------------------------------------------------------------------------------

    def weak_label_path(self, method: str, name: str) -> str:
        """Return where something that a weak-label method made lies below the campaign."""
        return f"weak_labels/{check_id(method, 'method')}/{check_id(name, 'file name')}"

    # annotations --------------------------------------------------------------------------------------------------

    def annotation_path(self, ticket_id: str, digest: str) -> str:
        """Return where a label array of a ticket lies below the campaign."""
        return f"annotations/{check_id(ticket_id, 'ticket id')}/{check_id(digest, 'digest')}.npz"

    # annotation server --------------------------------------------------------------------------------------------

    def token_path(self, token_id: str = "") -> str:
        """Return where a token of the annotation server is described below the campaign, or the folder of all."""
        return f"tokens/{check_id(token_id, 'token id')}.json" if token_id else "tokens"

    @property
    def image_key_path(self) -> str:
        """Where the key lies that the annotation server signs image addresses with."""
        return "image_key"

    # generations --------------------------------------------------------------------------------------------------

    def generation_path(self, generation: int, *parts: str) -> str:
        """Return a path inside a generation's folder, below the campaign."""
        return "/".join((f"generations/{generation:04d}", *parts))

    def generations(self) -> list[int]:
        """Return the numbers of the generations begun."""
        return [int(name) for name in self.storage.list("generations") if name.isdigit()]

    def trainings(self) -> list[str]:
        """Return the names of the trainings outside the loop."""
        return [name for name in self.storage.list("trainings") if not name.startswith(".")]

    def training_path(self, name: str, *parts: str) -> str:
        """Return a path inside the folder of a training outside the loop, below the campaign."""
        return "/".join(("trainings", check_id(name, "training"), *parts))

    def work_folder(self, generation: int) -> Path:
        """Return the local folder of a generation's training; see `local_folder`."""
        return self.local_folder(self.generation_path(generation, "training"))

    def local_folder(self, relative: str) -> Path:
        """Return a local folder for a path below the campaign; of a remote campaign, a private one in the user's cache.

        Raises
        ------
        CampaignError
            If the path leaves the campaign, or somebody else could reach into the folder in the cache.
        """
        inside = self.storage.path(relative)
        if self.storage.is_local:
            return Path(inside)
        return private_folder(
            cache_folder(),
            f"rescueseg-work/{digest_json(self.url)[:16]}/{relative}",
            todo="Remove it after a look at what it holds, or set XDG_CACHE_HOME to a folder of your own",
        )

    def result(self, file: RecordFile[T], generation: int) -> T | None:
        """Return what a file in a generation's folder holds, None where there is none; raises as `read`."""
        return self.read(file, self.generation_path(generation))

    def require(self, file: RecordFile[T], generation: int) -> T:
        """Return what a finished stage wrote; raises as `read`, too.

        Raises
        ------
        CampaignError
            If it has not finished.
        """
        result = self.result(file, generation)
        if result is None:
            raise CampaignError(
                f"the stage '{file.name}' of generation {generation} has not finished",
                where=self.url,
                todo="Run 'rescueseg generation CAMPAIGN'; it goes on where it stopped",
            )
        return result

    def has(self, file: RecordFile[T], generation: int) -> bool:
        """Tell whether a generation has a file; it is not read."""
        return self.storage.exists(file.path(self.generation_path(generation)))

    def finish(self, file: RecordFile[T], generation: int, result: T) -> None:
        """Write a stage's result: its commit point, after which a rerun skips it."""
        self.write(file, result, self.generation_path(generation))

    def finished_stages(self, generation: int) -> list[str]:
        """Return which of `STAGES` a generation has finished; no result is read."""
        names = set(self.storage.list(self.generation_path(generation)))
        return [stage for stage in STAGES if f"{stage}.json" in names]

    def note_progress(self, generation: int, what: str, done: int, total: int) -> None:
        """Write how far a running stage is, to be shown to people; nothing depends on it."""
        self.finish(PROGRESS, generation, (what, done, total))

    def snapshot(self, generation: int) -> Snapshot | None:
        """Return a generation's training set, None before it was made."""
        return self.result(SNAPSHOT, generation)

    def model(self, generation: int) -> ModelReference | None:
        """Return a generation's model, None before it was trained."""
        training = self.result(TRAINING, generation)
        return None if training is None else training.model

    def map_url(self, generation: int, volume_id: str) -> str:
        """Return the URL of the OME-Zarr maps of a volume in one generation."""
        return self.storage.url_of(self.generation_path(generation, "maps", f"{check_id(volume_id, 'volume id')}.zarr"))
