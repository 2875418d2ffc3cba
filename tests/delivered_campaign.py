"""A delivery of a small campaign, made by hand: labels, table, records; nothing is computed from the maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import ndimage

from rescueseg.campaign import Campaign
from rescueseg.delivery.folder import MASK, OBJECTS, DeliveryFolder, SourceVolume
from rescueseg.delivery.places import table_path
from rescueseg.delivery.records import DELIVERY, CleanUp, DeliveredVolume, Delivery, DeliveryRule, Score, Trial
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.ome_zarr import add_pyramid, create_image, create_labels
from tests.evaluated_campaign import SPACING

RULE = DeliveryRule(
    model_digest="m",
    truth_digest="t",
    threshold=0.45,
    temperature=1.2,
    cleanup=(CleanUp(spurs_um=0.2, smallest_um3=0.05),),
    trials=(
        Trial(what="threshold 0.40", score=0.81, chosen=False),
        Trial(what="threshold 0.45", score=0.84, chosen=True),
    ),
)


def object_rows(
    objects: npt.NDArray[np.uint32], entropy: npt.NDArray[np.floating], spacing: tuple[float, float, float] = SPACING
) -> list[dict[str, float | int | str]]:
    """Return the rows of a table of objects: only the columns that this part of the house reads."""
    rows: list[dict[str, float | int | str]] = []
    for number, where in enumerate(ndimage.find_objects(objects.astype(np.int64)), start=1):
        if where is None:
            continue
        inside = objects == number
        centre = np.argwhere(inside).mean(axis=0) * spacing
        bounds = {f"{a}{e}": int((s.start, s.stop)[e]) for a, s in zip("zyx", where, strict=True) for e in (0, 1)}
        position = {f"{a}_um": float(c) for a, c in zip("zyx", centre, strict=True)}
        size = float(inside.sum() * np.prod(spacing))
        rows.append(
            {"id": number, "class": "organelle", "voxels": int(inside.sum()), "volume_um3": size}
            | {"mean_entropy": float(entropy[inside].mean()), "touches_border": 0}
            | bounds | position
        )  # fmt: skip
    return rows


def write_table(folder: DeliveryFolder, volume_id: str, rows: list[dict[str, float | int | str]]) -> None:
    path = Path(folder.storage.path(table_path(volume_id)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def write_labels(
    folder: DeliveryFolder,
    volume_id: str,
    image: npt.NDArray[np.generic],
    mask: npt.NDArray[np.uint8],
    objects: npt.NDArray[np.uint32] | None,
) -> None:
    """Write image and labels with their pyramids, in small shards."""
    url, shape = folder.image_url(volume_id), mask.shape
    channels = image if image.ndim == 4 else image[None]
    layout = ImageLayout(channels.shape, channels.dtype, SPACING, chunks=(8, 16, 16), shards=(8, 32, 32))
    create_image(url, layout)[...] = channels
    add_pyramid(url)
    for name, array in ((MASK, mask), (OBJECTS, objects)):
        if array is not None:
            create_labels(url, name, shape, array.dtype, SPACING)[...] = array
            add_pyramid(f"{url}/labels/{name}", labels=True)


def deliver(
    campaign: Campaign,
    folder: DeliveryFolder,
    volume_id: str,
    mask: npt.NDArray[np.uint8],
    objects: npt.NDArray[np.uint32] | None,
    image: npt.NDArray[np.generic],
    entropy: npt.NDArray[np.floating] | None = None,
) -> DeliveredVolume:
    """Write everything of a volume, then its record."""
    write_labels(folder, volume_id, image, mask, objects)
    if objects is not None:
        write_table(folder, volume_id, object_rows(objects, np.zeros(mask.shape) if entropy is None else entropy))
    record = DeliveredVolume(
        volume_id=volume_id,
        source=f"{volume_id}.tif",
        in_campaign=volume_id in campaign.volumes.ids(),
        shape_zyx=mask.shape,
        spacing_um_zyx=SPACING,
        digest=f"delivery of {volume_id}",
        labels=(MASK,) if objects is None else (MASK, OBJECTS),
        objects=None if objects is None else int(objects.max()),
    )
    folder.records.write(folder.volume_record(volume_id), record)
    return record


def write_delivery(campaign: Campaign, folder: DeliveryFolder, generation: int = 0) -> None:
    """Write the record of the delivery as a whole."""
    model = campaign.generation(generation).model()
    assert model is not None
    folder.records.write(
        DELIVERY,
        Delivery(
            campaign_url=campaign.url,
            campaign_name=campaign.config.name,
            classes=campaign.config.classes,
            model=model,
            rule=RULE,
            scores=(
                Score(name="dice", most_likely=0.871, rule=0.884, delivered=0.902),
                Score(name="ap50", most_likely=None, rule=0.5, delivered=0.613),
            ),
            boxes=8,
        ),
    )


def source(campaign: Campaign, volume_id: str, generation: int = 0) -> SourceVolume:
    """Return where a volume of the campaign and its maps lie."""
    return SourceVolume(volume_id, campaign.url, campaign.url, generation)
