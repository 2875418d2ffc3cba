"""`rescueseg view`."""

from __future__ import annotations

from typing import Annotated

import typer

from rescueseg.cli.annotate import check_window
from rescueseg.cli.console import say_line
from rescueseg.errors import StorageError


def view(
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder or URL of the delivery.")],
    volume: Annotated[
        str | None, typer.Argument(metavar="VOLUME", help="A volume of it; the first one when omitted.")
    ] = None,
) -> None:
    """Look at a delivery in napari: image, mask and objects, with points at the most doubtful places and objects.

    Large volumes are shown at the resolution that the screen needs. N goes to the next doubtful place.
    """
    from rescueseg.delivery.folder import DeliveryFolder
    from rescueseg.delivery.records import DELIVERY

    folder = DeliveryFolder(out)
    delivery, volumes = folder.records.read(DELIVERY), {v.volume_id: v for v in folder.delivered()}
    if delivery is None or not volumes:
        raise StorageError("no volume is delivered here", where=out, todo="Run 'rescueseg segment' first")
    name = next(iter(volumes)) if volume is None else volume
    if name not in volumes:
        raise StorageError(
            f"no volume '{name}' is delivered here", where=out, todo=f"Name one of these: {', '.join(volumes)}"
        )
    check_window()
    import napari

    from rescueseg.napari_plugin.delivery_layers import DeliveryLayers

    if volume is None and len(volumes) > 1:
        say_line(f"Volume {name}; others: {', '.join(v for v in volumes if v != name)}")
    DeliveryLayers(napari.Viewer(), folder, volumes[name], delivery.classes)
    napari.run()
