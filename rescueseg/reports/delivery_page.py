"""The summary page of a delivery: what was delivered, how good it is, how it was made, and where to look first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.new_volumes import new_volume
from rescueseg.delivery.places import doubtful_objects, kept_places, table_path
from rescueseg.delivery.records import DELIVERY, CleanUp, DeliveredVolume, DeliveryRule, Score
from rescueseg.errors import StorageError
from rescueseg.evaluation.metric_table import METRICS
from rescueseg.reports.delivered_pictures import DeliveredPictures
from rescueseg.reports.delivered_sizes import draw_sizes, object_sizes
from rescueseg.reports.html import render_page

PAGE = "index.html"
OBJECTS_SHOWN, PLACES_SHOWN = 8, 8
"""The most doubtful ones that are shown."""
_TABLES = ("objects.csv", "objects.parquet")


@dataclass(frozen=True)
class VolumePart:
    """What the page shows of one volume.

    Parameters
    ----------
    record : DeliveredVolume
        What was delivered.
    picture : str
        Relative address.
    links : tuple of (label, address)
        Its files.
    command : str
        Opens it in napari.
    likeness : str
        How a new file was brought to what the model has learned; empty for a volume of the campaign, or when the work folder
        was removed.
    """

    record: DeliveredVolume
    picture: str
    links: tuple[tuple[str, str], ...]
    command: str
    likeness: str


@dataclass(frozen=True)
class Doubt:
    """A place or an object to look at first.

    Parameters
    ----------
    title, detail : str
        Where it is, and how doubtful.
    picture : str
        Relative address.
    """

    title: str
    detail: str
    picture: str


def write_page(folder: DeliveryFolder) -> None:
    """Write the summary page of a delivery and its pictures, from what is in the delivery alone.

    Nothing is read of the campaign or of the maps, and images at levels that are coarse enough for the picture. Written
    again, the page is replaced.

    Parameters
    ----------
    folder : DeliveryFolder
        The delivery.

    Raises
    ------
    StorageError
        If the folder holds no delivery, a file of it is damaged, or the disk is full.
    """
    delivery = folder.records.read(DELIVERY)
    if delivery is None:
        raise StorageError(
            "the folder holds no delivery", where=folder.storage.url, todo="Run 'rescueseg segment' first"
        )
    volumes = folder.delivered()
    painters = {v.volume_id: DeliveredPictures(folder, v, len(delivery.classes)) for v in volumes}
    parts = [_volume_part(folder, volume, painters[volume.volume_id]) for volume in volumes]
    sizes = object_sizes(folder, painters, delivery.classes)
    if sizes:
        _write_picture(folder, "sizes.png", draw_sizes(sizes, delivery.classes))
    page = render_page(
        "delivery.html",
        delivery=delivery,
        parts=parts,
        new_files=any(not v.in_campaign for v in volumes),
        voxels=sum(math.prod(v.shape_zyx) for v in volumes),
        objects=sum(v.objects for v in volumes if v.objects is not None),
        numbered=any(v.objects is not None for v in volumes),
        scores=[(score_label(score), score) for score in delivery.scores],
        headline=next((s for s in delivery.scores if s.name == "dice" and s.delivered is not None), None),
        explanations=[(m.label, m.explanation) for m in METRICS if m.name in {s.name for s in delivery.scores}],
        sizes=sizes,
        most_entropy=math.log(len(delivery.classes) + 1),
        objects_first=_doubtful_objects(folder, painters),
        places_first=_doubtful_places(folder, painters),
        rule=rule_in_words(delivery.rule, delivery.classes),
        tables=[(name, quote(name)) for name in _TABLES if folder.storage.exists(name)],
        command=f"rescueseg view {shlex.quote(folder.storage.url)}",
    )
    folder.storage.write_bytes(PAGE, page.encode())


def score_label(score: Score) -> str:
    """Return what people call a score.

    Examples
    --------
    >>> score_label(Score(name="ap50", most_likely=None, rule=None, delivered=0.5))
    'AP50'
    """
    return next((m.label for m in METRICS if m.name == score.name), score.name)


def rule_in_words(rule: DeliveryRule, classes: Sequence[str]) -> list[str]:
    """Return what a rule does, a sentence each.

    Examples
    --------
    >>> rule = DeliveryRule(model_digest="m", truth_digest="", cleanup=(CleanUp(smallest_um3=0.5),))
    >>> for sentence in rule_in_words(rule, ["cell"]):
    ...     print(sentence)
    A voxel is foreground where the model gives the background a probability below 0.50; its class is then the most probable of the others.
    cell: pieces smaller than 0.5 µm³ are dropped.
    No objects are told apart.
    There were no validation boxes, so nothing was chosen: these are the settings that nothing speaks against.
    """
    sentences = []
    if rule.temperature != 1:
        sure = "less sure" if rule.temperature > 1 else "surer"
        sentences.append(
            f"The model's probabilities are made {sure} first (temperature {rule.temperature:.2f}), as its validation "
            "boxes ask for."
        )
    sentences.append(
        f"A voxel is foreground where the model gives the background a probability below {1 - rule.threshold:.2f}; its "
        "class is then the most probable of the others."
    )
    for name, cleanup in zip(classes, rule.cleanup, strict=False):
        steps = cleanup_in_words(cleanup)
        sentences.append(f"{name}: {'; '.join(steps) if steps else 'nothing is cleaned'}.")
    sentences += _objects_in_words(rule, classes)
    if rule.truth_digest:
        sentences.append(
            f"Chosen among {len(rule.trials)} settings, each tried on the validation boxes; the test boxes had no part in it."
        )
    else:
        sentences.append(
            "There were no validation boxes, so nothing was chosen: these are the settings that nothing speaks against."
        )
    return sentences


def cleanup_in_words(cleanup: CleanUp) -> list[str]:
    """Return the steps of a clean-up that are done, in their order.

    Examples
    --------
    >>> cleanup_in_words(CleanUp(spurs_um=0.2, largest=True))
    ['protrusions thinner than 0.2 µm are taken off', 'only the largest piece is kept']
    """
    steps = (
        (
            cleanup.bridge_um,
            f"gaps up to {cleanup.bridge_um:g} µm are bridged where the probability reaches {cleanup.bridge_probability:g}",
        ),
        (cleanup.spurs_um, f"protrusions thinner than {cleanup.spurs_um:g} µm are taken off"),
        (cleanup.smallest_um3, f"pieces smaller than {cleanup.smallest_um3:g} µm³ are dropped"),
        (cleanup.cavities_um3, f"cavities up to {cleanup.cavities_um3:g} µm³ are filled"),
        (cleanup.largest, "only the largest piece is kept"),
    )
    return [text for done, text in steps if done]


def _objects_in_words(rule: DeliveryRule, classes: Sequence[str]) -> list[str]:
    if rule.objects is None:
        return ["No objects are told apart."]
    objects = rule.objects
    name = classes[rule.object_class - 1] if 0 < rule.object_class <= len(classes) else f"class {rule.object_class}"
    details = []
    if objects.source != "pieces":
        if objects.smoothing_um:
            details.append(f"smoothed over {objects.smoothing_um:g} µm")
        if objects.depth:
            deep = objects.depth_in_words
            details.append(f"parted where the saddle between two is at least {deep} below the lower peak")
    if objects.smallest_um3:
        details.append(f"those smaller than {objects.smallest_um3:g} µm³ join a neighbour or vanish")
    of = f" (boundary: {name})" if objects.source == "boundary" else ""
    return [f"Objects are {objects.source_in_words}{of}{', ' if details else ''}{', '.join(details)}."]


def _volume_part(folder: DeliveryFolder, volume: DeliveredVolume, painter: DeliveredPictures) -> VolumePart:
    name = volume.volume_id
    paths = [f"{name}.ome.zarr", table_path(name), *(file.path for file in volume.files)]
    links = [(path, quote(path)) for path in paths if folder.storage.exists(path)]
    command = f"rescueseg view {shlex.quote(folder.storage.url)} {shlex.quote(name)}"
    new, picture = new_volume(folder, name), _write_picture(folder, f"volume_{name}.png", painter.whole())
    return VolumePart(volume, picture, tuple(links), command, new.likeness if new else "")


def _doubtful_objects(folder: DeliveryFolder, painters: dict[str, DeliveredPictures]) -> list[Doubt]:
    doubts = []
    for rank, one in enumerate(doubtful_objects(folder, painters, OBJECTS_SHOWN), start=1):
        picture = painters[one.volume_id].object(one.number, one.box)
        at = ", ".join(f"{c:.4g}" for c in one.centre_um_zyx)
        doubts.append(
            Doubt(
                f"{one.volume_id}, {'object' if painters[one.volume_id].objects else 'piece'} {one.number}",
                f"z y x {at} µm · {one.entropy:.3f} nat",
                _write_picture(folder, f"object_{rank}.png", picture),
            )
        )
    return doubts


def _doubtful_places(folder: DeliveryFolder, painters: dict[str, DeliveredPictures]) -> list[Doubt]:
    doubts = []
    shown = [p for p in kept_places(folder) if p.volume_id in painters][:PLACES_SHOWN]
    for rank, place in enumerate(shown, start=1):
        picture = painters[place.volume_id].place(place.box)
        address = _write_picture(folder, f"place_{rank}.png", picture)
        doubts.append(Doubt(place.volume_id, f"z y x {place.box} · {place.entropy:.3f} nat", address))
    return doubts


def _write_picture(folder: DeliveryFolder, name: str, data: bytes) -> str:
    """Write a picture and return its address as the page names it."""
    folder.storage.write_bytes(f"pictures/{name}", data)
    return f"pictures/{quote(name)}"
