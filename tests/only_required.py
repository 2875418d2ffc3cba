"""A process that sees only what a list of requirements installs: what else lies in the environment cannot be imported.

``python -m tests.only_required MODEL IMAGE PREDICTION`` loads a pyfunc of MLflow like that, by the requirements stored with
it, and stores what it says of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_by(requirements: Sequence[str]) -> set[str]:
    """Return the names of the distributions that an empty environment holds once requirements are installed in it."""
    found: dict[str, set[str]] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        known = found.setdefault(canonicalize_name(requirement.name), set())
        new = {"", *requirement.extras} - known
        known |= new
        try:
            listed = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue
        waiting += [r for r in map(Requirement, listed) if _applies(r, new)]
    return set(found)


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return bool(extras) and (marker is None or any(marker.evaluate({"extra": extra}) for extra in extras))


def hide_others(requirements: Sequence[str]) -> None:
    """Let every import fail of what the requirements do not install."""
    installed = installed_by(requirements)
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not any(canonicalize_name(owner) in installed for owner in owners)
    }

    class OnlyRequired(PathFinder):
        @classmethod
        def find_spec(
            cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            return None if fullname in hidden else super().find_spec(fullname, path, target)

    sys.meta_path[:] = [OnlyRequired if finder is PathFinder else finder for finder in sys.meta_path]


def main(model: str, image: str, prediction: str) -> None:
    """Load a model and store what it says of an image."""
    hide_others(Path(model, "requirements.txt").read_text().split())
    import mlflow.pyfunc
    import numpy as np

    np.save(prediction, mlflow.pyfunc.load_model(model).predict(np.load(image)))


if __name__ == "__main__":
    main(*sys.argv[1:])
