"""A campaign at a URL: created, opened, discarded; its settings and its records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from sqlalchemy.engine import URL

from rescueseg.campaign.campaign_file import decode_config, dump_config, parse_config
from rescueseg.campaign.folders import GenerationFolder, RecordFolder, TrainingFolder, generations
from rescueseg.campaign.layout import CAMPAIGN_FILE, DATABASE, PARTS, SERVICES, TRACKING_DATABASE, TRAINING, VOLUME
from rescueseg.campaign.record_file import RecordFile
from rescueseg.campaign.volume_folder import VolumeFolder
from rescueseg.config import CampaignConfig
from rescueseg.errors import RESTORE, CampaignError, StorageError, damaged
from rescueseg.geometry import Patch
from rescueseg.records import Holdout, QueriedPatch
from rescueseg.storage import Storage, digest_json

HOLDOUT = RecordFile("holdout", Holdout)
STARTING = RecordFile("starting", tuple[QueriedPatch, ...])
EXAMPLES = RecordFile("examples", tuple[Patch, ...])
ROUGH = RecordFile("rough", tuple[Patch, ...])


class Campaign:
    """One rescue job: volumes, classes, settings, queue, generations.

    A function takes it only where it needs several of these; else the part that it needs: the settings, the volumes, the
    folder of a generation, the frozen holdout.

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
        self.records = RecordFolder(storage)
        """Records at the campaign's root."""
        self.volumes = VolumeFolder(storage)

    @classmethod
    def create(cls, url: str, config: CampaignConfig) -> Campaign:
        """Start a campaign; the folder must not hold one yet.

        Raises
        ------
        CampaignError
            If there is one already.
        """
        campaign = cls(cls.free_place(url, config), config)
        try:
            campaign.storage.write_bytes(CAMPAIGN_FILE.path(), dump_config(config).encode())
        except BaseException:
            campaign.discard()
            raise
        return campaign

    @staticmethod
    def free_place(url: str, config: CampaignConfig) -> Storage:
        """Return the storage where a campaign may be created; nothing is written.

        Raises
        ------
        CampaignError
            If there is a campaign already, something else lies where its parts would, or it needs a database.
        """
        storage = Storage(url)
        if storage.exists(CAMPAIGN_FILE.path()):
            raise CampaignError(
                "there is a campaign already",
                where=storage.url,
                todo="Choose another folder, or add volumes with 'rescueseg add'",
            )
        if names := [name for name in PARTS if storage.exists(name)]:
            raise CampaignError(
                f"the folder holds '{names[0]}', which a campaign would write",
                where=storage.url,
                todo="Choose a folder of its own for the campaign",
            )
        if not storage.is_local and not config.database_url:
            raise CampaignError(
                "a campaign off the local disk needs a database",
                where=storage.url,
                todo="Set database_url to a PostgreSQL URL",
            )
        return storage

    @classmethod
    def open(cls, url: str) -> Campaign:
        """Open a campaign.

        Raises
        ------
        CampaignError
            If there is none.
        ConfigError
            If its settings are not valid.
        """
        if url.startswith(("http://", "https://")):
            raise CampaignError(
                "this command reads the campaign's folder, not a server",
                where=url,
                todo="Name the folder; 'queue next', export, submit, watch and review work at a server's address",
            )
        storage = Storage(url)
        if not storage.exists(CAMPAIGN_FILE.path()):
            raise CampaignError(
                "there is no campaign here", where=storage.url, todo="Make one with 'rescueseg init CAMPAIGN VOLUME…'"
            )
        file = CAMPAIGN_FILE.path()
        where = f"{storage.url}/{file}"
        return cls(storage, parse_config(decode_config(storage.read_bytes(file), where), where))

    def discard(self) -> None:
        """Remove what `create` and a failed first import left: the settings, and folders that hold nothing."""
        self.storage.remove(CAMPAIGN_FILE.path())
        if self.storage.is_local:
            for folder in (Path(self.storage.root, VOLUME.top), Path(self.storage.root)):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    @property
    def url(self) -> str:
        """Where the campaign lives; absolute."""
        return self.storage.url

    @property
    def file(self) -> str:
        """URL of the file of its settings, for messages."""
        return f"{self.url}/{CAMPAIGN_FILE.path()}"

    @cached_property
    def database_url(self) -> str | URL:
        """SQLAlchemy URL of the queue; an object for the campaign's own file, whose path may hold any character."""
        return self.config.database_url or URL.create("sqlite", database=self.storage.path(DATABASE.path()))

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI to use when neither the config nor the environment names one."""
        return f"sqlite:///{self.storage.path(TRACKING_DATABASE.path())}"

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
        return Path(self.storage.path(SERVICES.path()))

    def require_volumes(self) -> None:
        """Make sure that every volume that the holdout was drawn with still has its record.

        Raises
        ------
        StorageError
            At the first that has none: it would be left out of everything without a word.
        """
        holdout = self.holdout()
        names = {*holdout.volumes, *(box.volume_id for box in holdout.all_boxes)} if holdout else set()
        for name in sorted(names.difference(self.volumes.ids())):
            raise damaged(self.storage.path(VOLUME.path(volume=name)), "it is missing")

    # generations and trainings ------------------------------------------------------------------------------------

    def generation(self, number: int) -> GenerationFolder:
        """Return the folder of a generation, begun or not."""
        return GenerationFolder.of(self.storage, number)

    def generations(self) -> list[GenerationFolder]:
        """Return the generations begun, by number."""
        return generations(self.storage)

    def training(self, name: str) -> TrainingFolder:
        """Return the folder of a training outside the loop, begun or not."""
        return TrainingFolder.of(self.storage, name)

    def trainings(self) -> list[str]:
        """Return the names of the trainings outside the loop."""
        return [name for name in self.storage.list(TRAINING.top) if not name.startswith(".")]

    # which patches are whose --------------------------------------------------------------------------------------

    def holdout(self) -> Holdout | None:
        """Return the frozen holdout, None before the first sampling.

        Raises
        ------
        StorageError
            If it is damaged, or lost: what it kept apart was drawn after it.
        """
        holdout = self.records.read(HOLDOUT)
        if holdout is None and self.records.has(STARTING):
            raise StorageError(
                "the frozen holdout is lost: the file is missing, and the starting patches were drawn beside it",
                where=self.storage.path(HOLDOUT.path()),
                todo=RESTORE,
            )
        return holdout

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
        self.storage.write_json(HOLDOUT.path(), holdout.to_json())

    def holdout_digest(self) -> str:
        """Return the digest of the frozen holdout, empty when there is none."""
        holdout = self.holdout()
        return digest_json(holdout.to_json()) if holdout else ""

    def starting_patches(self) -> list[QueriedPatch] | None:
        """Return the patches that generation 0 is trained on, None before they were drawn."""
        patches = self.records.read(STARTING)
        return None if patches is None else list(patches)

    def save_starting_patches(self, patches: Sequence[QueriedPatch]) -> None:
        """Write the starting patches."""
        self.records.write(STARTING, tuple(patches))

    def example_patches(self) -> list[Patch]:
        """Return the patches that a person chose as examples before the holdout was drawn; they are never held out."""
        patches = self.records.read(EXAMPLES)
        return [] if patches is None else list(patches)

    def save_example_patches(self, patches: Sequence[Patch]) -> None:
        """Write the example patches, before their tickets."""
        self.records.write(EXAMPLES, tuple(patches))

    def rough_patches(self) -> list[Patch]:
        """Return the patches whose labels the triage looked at; they count as annotated and are never held out."""
        patches = self.records.read(ROUGH)
        return [] if patches is None else list(patches)

    def save_rough_patches(self, patches: Sequence[Patch]) -> None:
        """Write the patches whose labels the triage looks at, before it looks."""
        self.records.write(ROUGH, tuple(patches))
