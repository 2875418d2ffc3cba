"""A campaign at a URL: created, opened, discarded."""

from __future__ import annotations

from pathlib import Path

from rescueseg.campaign.campaign_file import dump_config, parse_config
from rescueseg.campaign.folder import CampaignFolder
from rescueseg.campaign.layout import PARTS
from rescueseg.config import CampaignConfig
from rescueseg.errors import CampaignError
from rescueseg.storage import Storage


class Campaign(CampaignFolder):
    """One rescue job: volumes, classes, settings, queue, generations; what it holds is read and written by `CampaignFolder`.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    config : CampaignConfig
        Its settings.
    """

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
            campaign.storage.write_bytes("campaign.toml", dump_config(config).encode())
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
        if storage.exists("campaign.toml"):
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
        if not storage.exists("campaign.toml"):
            raise CampaignError(
                "there is no campaign here", where=storage.url, todo="Make one with 'rescueseg init CAMPAIGN VOLUME…'"
            )
        return cls(storage, parse_config(storage.read_bytes("campaign.toml").decode(), f"{storage.url}/campaign.toml"))

    def discard(self) -> None:
        """Remove what `create` and a failed first import left: the settings, and folders that hold nothing."""
        self.storage.remove("campaign.toml")
        if self.storage.is_local:
            for folder in (Path(self.storage.root, "volumes"), Path(self.storage.root)):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
