"""What a campaign's folder holds, its immutable snapshots, trainings outside the loop, and which route it follows."""

from rescueseg.campaign.campaign import Campaign
from rescueseg.campaign.layout import STAGES, check_id

__all__ = ["STAGES", "Campaign", "check_id"]
