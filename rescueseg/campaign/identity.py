"""What a campaign is known by, wherever its folder lies."""

from __future__ import annotations

from rescueseg.campaign.record_file import RecordFile
from rescueseg.records import Record


class Identity(Record):
    """What tells a campaign from all others, those of the same name too."""

    campaign_id: str
    """32 hexadecimal digits, drawn when its queue was made; the queue's database holds them too."""


IDENTITY = RecordFile("identity", Identity)
"""Its file is there once the campaign's queue was made: from then on a missing queue is a lost one."""
