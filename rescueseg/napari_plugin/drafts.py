"""Drafts: drawings that are not handed in yet, kept on this machine so that a crash of the window loses nothing."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import numpy as np
import platformdirs

from rescueseg.labels import PatchLabels
from rescueseg.storage import Storage, digest_json


def state_folder() -> Path:
    """Return this user's folder for drafts; `XDG_STATE_HOME` moves it on Linux."""
    return Path(platformdirs.user_state_dir("rescueseg", appauthor=False)) / "drafts"


class Drafts:
    """One person's drafts in one campaign, at most one per name.

    Parameters
    ----------
    folder : Path
        Folder for the files; see `state_folder`.
    address : str
        Campaign folder or server URL.
    annotator : str
        Name of the person.
    """

    def __init__(self, folder: Path, address: str, annotator: str) -> None:
        self._storage = Storage(str(folder / digest_json([address, annotator])[:16]))
        self._lock = threading.Lock()
        self._removed: set[str] = set()

    def save(self, name: str, start: PatchLabels, labels: PatchLabels) -> None:
        """Keep a drawing; it replaces the one kept before, atomically.

        Parameters
        ----------
        name : str
            The ticket id, or another name of the draft.
        start : PatchLabels
            The mask it was drawn over: `load` returns the drawing for this start only.
        labels : PatchLabels
            The drawing.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        arrays = {"classes": labels.classes, "start": np.array(start.digest)}
        if labels.instances is not None:
            arrays["instances"] = labels.instances
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        with self._lock:
            if name not in self._removed:
                self._storage.write_bytes(f"{name}.npz", buffer.getvalue())

    def load(self, name: str, start: PatchLabels) -> PatchLabels | None:
        """Return the drawing kept under a name; None where there is none, or it was drawn over something else."""
        path = f"{name}.npz"
        with self._lock:
            self._removed.discard(name)
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
        """Remove a drawing; a `save` that still runs does not bring it back."""
        with self._lock:
            self._removed.add(name)
            self._storage.remove(f"{name}.npz")
