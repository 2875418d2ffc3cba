"""Which of a route's trainers is taken: the first that is installed and can learn from what the campaign annotates."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.campaign.route import DEFAULT_TRAINER
from rescueseg.models.registry import find_entry, suited_to, trainer_names
from rescueseg.triage.tree import Route


@dataclass(frozen=True)
class PickedTrainer:
    """The trainer of a route.

    Parameters
    ----------
    name : str
        The first that is installed and can learn from what the campaign annotates.
    missing : tuple of str
        Better ones that are not installed.
    need_objects : tuple of str
        Better ones that are installed and learn from numbered objects alone, where the campaign numbers none.
    """

    name: str
    missing: tuple[str, ...] = ()
    need_objects: tuple[str, ...] = ()


def pick_trainer(route: Route, *, numbered: bool) -> PickedTrainer:
    """Return the trainer of a route.

    A trainer of another package that names the route as its own comes first, unless the route has a place for it.

    Parameters
    ----------
    route : Route
        With its trainers, best first.
    numbered : bool
        Whether the campaign annotates numbered objects.
    """
    others = tuple(name for name in suited_to(route.name) if name not in route.trainers)
    installed = trainer_names()
    missing, need_objects = [], []
    for name in (*others, *route.trainers):
        if name not in installed:
            missing.append(name)
        elif find_entry(name).needs_instances and not numbered:
            need_objects.append(name)
        else:
            return PickedTrainer(name, tuple(missing), tuple(need_objects))
    return PickedTrainer(DEFAULT_TRAINER, tuple(missing), tuple(need_objects))
