"""What a campaign's folder holds, its immutable snapshots, trainings outside the loop, and which route it follows."""

from rescueseg.campaign.campaign import Campaign
from rescueseg.campaign.folders import GenerationFolder, RecordFolder, TrainingFolder
from rescueseg.campaign.layout import STAGES, check_id
from rescueseg.campaign.volume_folder import VolumeFolder

__all__ = ["STAGES", "Campaign", "GenerationFolder", "RecordFolder", "TrainingFolder", "VolumeFolder", "check_id"]
