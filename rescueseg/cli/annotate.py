"""`rescueseg annotate`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Annotated

import typer

from rescueseg.cli.options import AnnotatorOption, DeskArgument
from rescueseg.errors import ServiceError

_PROBE = "from qtpy.QtWidgets import QApplication; QApplication([])"


def annotate(
    campaign: DeskArgument,
    annotator: AnnotatorOption,
    review: Annotated[bool, typer.Option("--review", help="Look at what waits for a reviewer.")] = False,
) -> None:
    """Annotate in napari: take patches, correct their masks, hand them in.

    At a server that asks for a token, RESCUESEG_TOKEN holds it. The drawing is kept on this machine every few seconds
    until it is handed in: after a crash, give the command again.
    """
    from rescueseg.annotation.clients import desk_for

    check_window()
    desk_for(campaign, annotator).info()  # what is wrong is said here, not in a window
    import napari

    from rescueseg.napari_plugin.widget import open_window

    open_window(campaign, annotator, review=review)
    napari.run()


def check_window() -> None:
    """Make sure that napari is there and can open a window.

    Raises
    ------
    ServiceError
        If it is not installed, or there is no display.
    """
    if importlib.util.find_spec("napari") is None or importlib.util.find_spec("qtpy") is None:
        raise ServiceError("napari is not installed", todo="Run: pip install 'rescueseg[napari]'")
    # Qt does not raise where it finds no display, it ends the process: ask in another one
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        said = next((line.strip() for line in probe.stderr.splitlines() if "qt.qpa" in line or "Error" in line), "")
        raise ServiceError(
            f"no window can be opened{f': {said}' if said else ''}".rstrip("."),
            todo="Start it where there is a display (ssh -X, a remote desktop), "
            "or take patches as files: rescueseg queue next CAMPAIGN --out FOLDER",
        )
