"""`rescueseg annotate`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Annotated

import typer

from rescueseg.cli.options import AnnotatorOption, CampaignOrServerArgument
from rescueseg.errors import ServiceError

_PROBE = "from qtpy.QtWidgets import QApplication; QApplication([])"


def annotate(
    campaign: CampaignOrServerArgument,
    annotator: AnnotatorOption,
    review: Annotated[bool, typer.Option("--review", help="Look at what waits for a reviewer.")] = False,
) -> None:
    """Annotate in napari: take patches, correct their masks, hand them in.

    At a server that asks for a token, RESCUESEG_TOKEN holds it. The drawing is kept on this machine every few seconds
    until it is handed in: after a crash, give the command again.
    """
    from rescueseg.annotation.clients import open_client

    check_window()
    open_client(campaign, annotator).info()  # errors appear here, not in a window
    import napari

    from rescueseg.napari_plugin.widget import open_window

    open_window(campaign, annotator, review=review)
    napari.run()


def check_window() -> None:
    """Check that napari is installed and can open a window.

    Raises
    ------
    ServiceError
        If it is not, or there is no display.
    """
    if importlib.util.find_spec("napari") is None or importlib.util.find_spec("qtpy") is None:
        raise ServiceError("napari is not installed", todo="Run: pip install 'rescueseg[napari]'")
    # without a display Qt does not raise but ends the process: try it in another process
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        line = next((line.strip() for line in probe.stderr.splitlines() if "qt.qpa" in line or "Error" in line), "")
        raise ServiceError(
            f"no window can be opened{f': {line}' if line else ''}".rstrip("."),
            todo="Start it where there is a display (ssh -X, a remote desktop), "
            "or take patches as files: rescueseg queue next CAMPAIGN --out FOLDER",
        )
