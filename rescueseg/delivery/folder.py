"""What lies where in a delivery.

::

    delivery.json                     what it is made with (`rescueseg.delivery.records.Delivery`)
    index.html, pictures/             the summary page
    places.json                       its most doubtful places (`rescueseg.delivery.places`)
    objects.csv, objects.parquet      the table of objects of all volumes
    <volume>.ome.zarr/                image, and labels/mask, labels/objects
    <volume>_mask.tif …               what was asked for beside it
    records/<volume>.json             what was delivered of a volume: its commit point
    tables/<volume>.parquet           its objects
    corrections/<volume>/             what people corrected, and what stood there before
    work/                             imported files, maps, passes: may be removed when all is done
"""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.campaign import VolumeFolder
from rescueseg.campaign.folders import GenerationFolder, RecordFolder
from rescueseg.campaign.layout import check_id
from rescueseg.campaign.record_file import RecordFile
from rescueseg.delivery.records import DeliveredVolume
from rescueseg.inference.maps import VolumeMaps
from rescueseg.storage import Storage
from rescueseg.volumes.checked_array import CheckedArray
from rescueseg.volumes.opening import open_image

MASK, OBJECTS = "mask", "objects"
"""Names of the label images."""
PROGRESS = RecordFile("work/progress", tuple[str, int, int])
"""What is counted, how many are done, and how many there are; to be shown to people, nothing depends on it."""


@dataclass(frozen=True)
class SourceVolume:
    """Where the image and the maps of a volume lie; it can be pickled, so blocks get it.

    Parameters
    ----------
    volume_id : str
        The volume.
    volumes_url : str
        The campaign it is in, or the work folder of the delivery.
    maps_url : str
        Storage with the generation's folder in which its maps lie: the campaign, or the work folder.
    generation : int
        Which one.
    """

    volume_id: str
    volumes_url: str
    maps_url: str
    generation: int

    @property
    def volumes(self) -> VolumeFolder:
        """The volumes among which it lies."""
        return VolumeFolder(Storage(self.volumes_url))

    def open_image(self) -> CheckedArray:
        """Open the image, czyx, read-only."""
        return open_image(self.volumes, self.volume_id)

    @property
    def maps(self) -> VolumeMaps:
        """Its maps."""
        return VolumeMaps(GenerationFolder.of(Storage(self.maps_url), self.generation), self.volume_id)


@dataclass(frozen=True)
class DeliveryFolder:
    """The folder of a delivery.

    Parameters
    ----------
    url : str
        A folder or an fsspec URL.
    """

    url: str

    @property
    def storage(self) -> Storage:
        """Its root."""
        return Storage(self.url)

    @property
    def records(self) -> RecordFolder:
        """The records at its root."""
        return RecordFolder(self.storage)

    def image_url(self, volume_id: str) -> str:
        """Return the URL of a delivered OME-Zarr image; its labels lie below ``labels/``."""
        return self.storage.url_of(f"{check_id(volume_id, 'volume id')}.ome.zarr")

    def work_url(self, *parts: str) -> str:
        """Return a URL below the work folder."""
        return self.storage.url_of("/".join(("work", *parts)))

    def pass_url(self, volume_id: str, name: str) -> str:
        """Return the folder of the markers of a pass over a volume."""
        return self.work_url("passes", check_id(volume_id, "volume id"), name)

    def scratch_url(self, volume_id: str, name: str) -> str:
        """Return the URL of an array that passes over a volume hand on."""
        return self.work_url("scratch", check_id(volume_id, "volume id"), f"{name}.zarr")

    def volume_record(self, volume_id: str) -> RecordFile[DeliveredVolume]:
        """Return the file that says what was delivered of a volume."""
        return RecordFile(f"records/{check_id(volume_id, 'volume id')}", DeliveredVolume)

    def delivered(self) -> list[DeliveredVolume]:
        """Return what was delivered, by volume id."""
        names = [n.removesuffix(".json") for n in self.storage.list("records") if n.endswith(".json")]
        volumes = [self.records.read(self.volume_record(name)) for name in sorted(names)]
        return [volume for volume in volumes if volume is not None]
