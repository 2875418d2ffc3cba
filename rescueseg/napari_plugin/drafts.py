"""Drawings that were not handed in yet, kept on this machine: what a crash of the window leaves behind."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import numpy as np

from rescueseg.labels import PatchLabels
from rescueseg.storage import Storage, digest_json


def state_folder() -> Path:
    """Return this user's folder for drawings in work; `XDG_STATE_HOME` moves it on Linux."""
    import platformdirs

    return Path(platformdirs.user_state_dir("rescueseg", appauthor=False)) / "drafts"


class Drafts:
    """One person's drawings in one campaign, at most one per name.

    Parameters
    ----------
    folder : Path
        Where they lie; see `state_folder`.
    place : str
        Campaign folder or server URL.
    annotator : str
        Whose they are.
    """

    def __init__(self, folder: Path, place: str, annotator: str) -> None:
        self._storage = Storage(str(folder / digest_json([place, annotator])[:16]))
        self._lock = threading.Lock()
        self._gone: set[str] = set()

    def save(self, name: str, start: PatchLabels, drawn: PatchLabels) -> None:
        """Keep a drawing; the one kept before is replaced at once or not at all.

        Parameters
        ----------
        name : str
            The ticket, or another name for the work.
        start : PatchLabels
            What it was drawn over: the drawing is given back for this start only.
        drawn : PatchLabels
            The drawing.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        arrays = {"classes": drawn.classes, "start": np.array(start.digest)}
        if drawn.instances is not None:
            arrays["instances"] = drawn.instances
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        with self._lock:
            if name not in self._gone:
                self._storage.write_bytes(f"{name}.npz", buffer.getvalue())

    def load(self, name: str, start: PatchLabels) -> PatchLabels | None:
        """Return the drawing kept under a name; None where there is none, or it was drawn over something else."""
        path = f"{name}.npz"
        with self._lock:
            self._gone.discard(name)
            if not self._storage.exists(path):
                return None
            try:
                with np.load(io.BytesIO(self._storage.read_bytes(path)), allow_pickle=False) as archive:
                    if str(archive["start"]) != start.digest:
                        return None
                    return PatchLabels(archive["classes"], archive.get("instances"))
            except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):  # not ours: it must not stop the work
                return None

    def remove(self, name: str) -> None:
        """Forget a drawing; a `save` that is still under way brings it back no more."""
        with self._lock:
            self._gone.add(name)
            self._storage.remove(f"{name}.npz")
