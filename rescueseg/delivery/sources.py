"""Where image and maps of a delivered volume lie, and what its labels are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rescueseg.campaign import Campaign
from rescueseg.delivery.folder import DeliveryFolder, SourceVolume
from rescueseg.delivery.new_volumes import new_volume
from rescueseg.delivery.records import DeliveredVolume, Delivery
from rescueseg.delivery.request import DeliveryModel
from rescueseg.errors import InferenceError, VolumeError
from rescueseg.inference.engine import InferenceJob, infer, volume_digest
from rescueseg.progress import CountProgress
from rescueseg.records import VolumeRecord
from rescueseg.storage import digest_json

if TYPE_CHECKING:
    from distributed import Client


def source_of(
    campaign: Campaign, folder: DeliveryFolder, chosen: DeliveryModel, delivery: Delivery, volume_id: str
) -> SourceVolume:
    """Return where a volume and its maps lie: those of a generation in the campaign, all others in the work folder.

    Maps of a generation that were made before the volume's intensities were mapped otherwise are left to it: others are made.

    Raises
    ------
    InferenceError
        If it was a file, and its imported copy was removed.
    VolumeError
        If it was a file, and the campaign has another volume of this name since.
    """
    work, number = folder.work_url(), chosen.model.generation
    new = new_volume(folder, volume_id)
    own = campaign.volumes.record(volume_id) if volume_id in campaign.volumes.ids() else None
    if new is not None and (own is None or own.digest == new.record.digest):
        return SourceVolume(volume_id, work, work, number)
    known = folder.records.read(folder.volume_record(volume_id))
    if new is not None or (known is not None and not known.in_campaign):
        if own is not None and (new is not None or known is None or known.digest != labels_digest(delivery, own)):
            raise VolumeError(
                "a file was delivered by this name, and the campaign has another volume of it since",
                where=f"volume {volume_id}",
                todo="Deliver the campaign's volume into another --out",
            )
        if own is None:
            raise InferenceError(
                "its imported copy was removed with the work folder of the delivery",
                where=f"volume {volume_id}",
                todo=f"Name the file again: {known.source if known else volume_id}",
            )
    inside = SourceVolume(volume_id, campaign.url, campaign.url, number)
    plan = inside.maps.plan()
    mapped_otherwise = plan is not None and own is not None and plan.volume_digest != volume_digest(own)
    return replace(inside, maps_url=work) if chosen.training or mapped_otherwise else inside


def labels_digest(delivery: Delivery, record: VolumeRecord) -> str:
    """Return the digest of all that the labels of a volume depend on, but for corrections."""
    described = [record.digest, record.normalisation.to_json(), list(record.spacing_um_zyx)]
    return digest_json([delivery.model.digest, delivery.rule.to_json(), described, delivery.with_image])


def is_of_another_rule(campaign: Campaign, folder: DeliveryFolder, delivery: Delivery, volume: DeliveredVolume) -> bool:
    """Tell whether a volume was delivered by another rule; one whose imported copy was removed stays as it is."""
    new = new_volume(folder, volume.volume_id)
    if new is None and volume.volume_id not in campaign.volumes.ids():
        return False
    return volume.digest != labels_digest(delivery, new.record if new else campaign.volumes.record(volume.volume_id))


def make_maps(
    campaign: Campaign, chosen: DeliveryModel, source: SourceVolume, client: Client | None, progress: CountProgress
) -> None:
    """Predict a volume, unless it was as it is now; raises as `rescueseg.inference.engine.infer`."""
    plan = source.maps.plan()
    today = volume_digest(source.volumes.record(source.volume_id))
    if plan is not None and plan.volume_digest == today and source.maps.reference():
        return
    job = replace(InferenceJob.of(campaign, chosen.model, source.volume_id), volumes_url=source.volumes_url)
    infer(replace(job, maps_url=source.maps_url), client, progress)
