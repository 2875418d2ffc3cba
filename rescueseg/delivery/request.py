"""What a person asks to be delivered, and what follows from it: the model, the volumes, the place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.folders import RecordFolder
from rescueseg.campaign.identity import IDENTITY
from rescueseg.campaign.layout import CAMPAIGN_FILE
from rescueseg.campaign.outside_trainings import read_request
from rescueseg.delivery.folder import PROGRESS, DeliveryFolder
from rescueseg.delivery.records import DELIVERY, Delivery
from rescueseg.errors import CampaignError, ConfigError, InferenceError, StorageError, UnreadableVolumeError
from rescueseg.evaluation.champion import champion
from rescueseg.evaluation.leak_check import require_model
from rescueseg.evaluation.training_scores import require_training_model
from rescueseg.image_files.source import Statement
from rescueseg.inference.maps import VolumeMaps
from rescueseg.records import ModelReference, Record
from rescueseg.storage import Storage
from rescueseg.volumes.domains import trained_volumes
from rescueseg.volumes.volume_files import VolumeImport

Format = Literal["tiff", "nifti", "nrrd"]
Spacing = tuple[float, float, float]


class SegmentRequest(Record):
    """One delivery, as it is asked for; the flow of Prefect takes it as it stands."""

    out: str
    """Folder or fsspec URL."""
    volumes: tuple[str, ...] = ()
    """Ids of volumes of the campaign."""
    files: tuple[str, ...] = ()
    """Files, folders or OME-Zarr URLs that are no volumes of it."""
    spacing_um_zyx: Spacing | None = None
    """Voxel size of the files, where they do not say it."""
    axes: str = ""
    series: int | None = None
    position: int | None = None
    accept_holes: bool = False
    generation: int | None = None
    """Whose model predicts; when neither this nor a training is named, that of the delivery, or the champion."""
    training: str = ""
    """A training outside the loop instead."""
    objects: Literal["auto", "yes", "no"] = "auto"
    """Auto: as in the delivery that is there, or where the campaign numbers objects."""
    boundary_class: str = ""
    """Class that is the boundary between objects, such as a membrane."""
    with_image: bool | None = None
    """Copy the image beside the labels; None: as in the delivery that is there, which is yes in a new one."""
    formats: tuple[Format, ...] = ()
    """Files to be written beside the OME-Zarr."""
    review: Annotated[int, Field(ge=0)] = 0
    """So many of the most doubtful places become tickets."""

    @property
    def template(self) -> VolumeImport:
        """What is said of the files."""
        said = Statement(self.axes, self.series, self.position, self.accept_holes)
        return VolumeImport("", spacing=self.spacing_um_zyx, said=said)

    def makes_objects(self, campaign: Campaign) -> bool:
        """Tell whether objects are delivered."""
        return (
            self.objects == "yes"
            or bool(self.boundary_class)
            or (self.objects == "auto" and campaign.config.annotation.labels == "instance")
        )


@dataclass(frozen=True)
class DeliveryModel:
    """The model of a delivery.

    Parameters
    ----------
    model : ModelReference
        The model.
    folder : RecordFolder
        Of its generation or training: what is chosen for it is kept there.
    training : str
        The training outside the loop, empty for a generation.
    trained : frozenset of str
        Volumes that it has learned from.
    """

    model: ModelReference
    folder: RecordFolder
    training: str
    trained: frozenset[str]

    def maps_of(self, storage: Storage, volume_id: str) -> VolumeMaps:
        """Return the maps of a volume in a storage, made or not."""
        return VolumeMaps(GenerationFolder.of(storage, self.model.generation), volume_id)


def delivery_model(campaign: Campaign, request: SegmentRequest) -> DeliveryModel:
    """Return the model that a request names.

    Raises
    ------
    InferenceError
        If there is no champion yet.
    EvaluationError
        If there is no such generation or training, or it has no model.
    ConfigError
        If both are named.
    """
    if request.training:
        if request.generation is not None:
            raise ConfigError(
                "a generation and a training are both named", where=request.training, todo="Name one of them"
            )
        model, training = require_training_model(campaign, request.training), campaign.training(request.training)
        items = read_request(training).snapshot.items
        return DeliveryModel(model, training, request.training, frozenset(item.volume_id for item in items))
    number = champion(campaign.generations()) if request.generation is None else request.generation
    if number is None:
        raise InferenceError(
            "there is no champion yet",
            where=campaign.url,
            todo="Run 'rescueseg generation CAMPAIGN' first, or name a --generation or --training",
        )
    folder = campaign.generation(number)
    upto = [g for g in campaign.generations() if g.number <= number]
    return DeliveryModel(require_model(folder), folder, "", frozenset(trained_volumes(upto)))


def sort_targets(
    campaign: Campaign, names: list[str], every: bool, delivered: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell ids of the campaign's volumes from files.

    Parameters
    ----------
    campaign : Campaign
        Whose volumes.
    names : list of str
        What a person named.
    every : bool
        Take all usable volumes of the campaign.
    delivered : collection of str
        Ids of volumes of the delivery that is there, files too.

    Returns
    -------
    volumes, files : tuple of str
        Ids, and paths made absolute.

    Raises
    ------
    UnreadableVolumeError
        If a name is neither.
    CampaignError
        If a volume is refused, or none is left.
    """
    usable = {record.volume_id: record for record in campaign.volumes.records(refused=True)}
    volumes = [v.volume_id for v in usable.values() if not v.refused] if every else []
    files = []
    for name in names:
        if name in usable:
            if reason := usable[name].refused:
                raise CampaignError(
                    f"the volume was refused: {reason}", where=name, todo="See 'rescueseg check CAMPAIGN'"
                )
            volumes.append(name)
        elif name in delivered:
            volumes.append(name)
        elif "://" in name or Path(name).exists() or any(c in name for c in "*?["):
            files.append(name if "://" in name else str(Path(name).absolute()))
        else:
            raise UnreadableVolumeError(
                "this is neither a volume of the campaign nor a file",
                where=name,
                todo=f"Volumes: {', '.join(dict.fromkeys([*usable, *delivered])) or 'none yet'}",
            )
    return tuple(dict.fromkeys(volumes)), tuple(dict.fromkeys(files))


def check_request(campaign: Campaign, request: SegmentRequest) -> SegmentRequest:
    """Make sure that a request can be carried out, as far as that is seen without reading a voxel; nothing is written.

    Returns
    -------
    SegmentRequest
        The same; what it leaves open is as in the delivery that is there, and where it names neither volumes nor files, it
        names all that were delivered.

    Raises
    ------
    ConfigError
        If it names nothing and nothing was delivered, or a class that is none.
    RescuesegError
        As `delivery_model` and `check_place`.
    """
    if request.boundary_class and request.boundary_class not in campaign.config.classes:
        raise ConfigError(
            f"no class '{request.boundary_class}'",
            where="--boundary-class",
            todo=f"Classes: {', '.join(campaign.config.classes)}",
        )
    if request.boundary_class and request.objects == "no":
        raise ConfigError(
            "a boundary class makes objects, and none are wanted", where="--objects", todo="Leave one of them out"
        )
    folder = DeliveryFolder(request.out)
    request = _completed(campaign, request, folder.records.read(DELIVERY))
    check_place(campaign, folder, delivery_model(campaign, request).model)
    if request.volumes or request.files:
        return request
    delivered = tuple(volume.volume_id for volume in folder.delivered())
    if not delivered:
        raise ConfigError(
            "nothing to deliver is named", where=campaign.url, todo="Name volumes or files, or give --all"
        )
    return request.model_copy(update={"volumes": delivered})


def _completed(campaign: Campaign, request: SegmentRequest, earlier: Delivery | None) -> SegmentRequest:
    """Return the request with what it leaves open as it was in the delivery that is there."""
    if earlier is None or not is_of_campaign(campaign, earlier):
        return request if request.with_image is not None else request.model_copy(update={"with_image": True})
    update: dict[str, object] = {}
    if request.generation is None and not request.training:
        update |= {"training": earlier.training} if earlier.training else {"generation": earlier.model.generation}
    if request.with_image is None:
        update["with_image"] = earlier.with_image
    if request.objects == "auto" and not request.boundary_class:
        rule = earlier.rule
        update["objects"] = "yes" if rule.objects else "no"
        if rule.objects and rule.objects.source == "boundary":
            update["boundary_class"] = earlier.classes[rule.object_class - 1]
    return request.model_copy(update=update)


def check_place(campaign: Campaign, folder: DeliveryFolder, model: ModelReference) -> None:
    """Make sure that a delivery may be written to a place; nothing is written.

    Raises
    ------
    StorageError
        If the folder holds something else, a delivery of another campaign or of another model, or lies in the campaign.
    """
    storage = folder.storage
    if storage.url == campaign.url or storage.url.startswith(f"{campaign.url}/"):
        raise StorageError("the delivery would lie inside the campaign", where=storage.url, todo="Choose another --out")
    earlier = folder.records.read(DELIVERY)
    if earlier is None:
        ours = any(storage.exists(path) for path in (f"work/{CAMPAIGN_FILE.path()}", PROGRESS.path()))
        names = [n for n in storage.list("") if not n.startswith(".") and not (n == "work" and ours)]
        if names:
            raise StorageError(
                f"the folder holds '{names[0]}' and is no delivery", where=storage.url, todo="Choose an empty --out"
            )
    else:
        require_same(campaign, earlier, model, storage.url)


def require_same(campaign: Campaign, delivery: Delivery, model: ModelReference, where: str) -> None:
    """Make sure that a delivery is of this campaign, wherever that lies now, and of this model.

    Raises
    ------
    StorageError
        If it is not.
    """
    if not is_of_campaign(campaign, delivery):
        what = f"campaign {delivery.campaign_url}"
    elif delivery.model.digest != model.digest:
        what = "another model"
    else:
        return
    raise StorageError(f"the folder holds a delivery of {what}", where=where, todo="Choose another --out")


def is_of_campaign(campaign: Campaign, delivery: Delivery) -> bool:
    """Tell whether a delivery is of a campaign, by its id, or by its place where it has none."""
    own = campaign_id(campaign)
    return own == delivery.campaign_id if own and delivery.campaign_id else campaign.url == delivery.campaign_url


def campaign_id(campaign: Campaign) -> str:
    """Return the id of a campaign, empty where an earlier version made it."""
    identity = campaign.records.read(IDENTITY)
    return identity.campaign_id if identity else ""
