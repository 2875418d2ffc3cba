"""Which of a route's trainers can be used here, best first."""

from __future__ import annotations

from dataclasses import dataclass

from rescueseg.campaign.route import DEFAULT_TRAINER
from rescueseg.models.registry import find_entry, suited_to, trainer_names
from rescueseg.triage.tree import Route


@dataclass(frozen=True)
class PickedTrainer:
    """The trainers of a route.

    Parameters
    ----------
    usable : tuple of str
        Those that are installed and can learn from what the campaign annotates, best first; at least one.
    missing : tuple of str
        Better ones than all of these that are not installed.
    need_objects : tuple of str
        Better ones that are installed and learn from numbered objects alone, where the campaign numbers none.
    """

    usable: tuple[str, ...]
    missing: tuple[str, ...] = ()
    need_objects: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The best one that can be used."""
        return self.usable[0]


def pick_trainer(route: Route, *, numbered: bool) -> PickedTrainer:
    """Return the trainers of a route that can be used.

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
    usable: list[str] = []
    missing: list[str] = []
    need_objects: list[str] = []
    for name in (*others, *route.trainers):
        if name in installed and (numbered or not find_entry(name).needs_instances):
            usable.append(name)
        elif not usable:
            (need_objects if name in installed else missing).append(name)
    return PickedTrainer(tuple(usable) or (DEFAULT_TRAINER,), tuple(missing), tuple(need_objects))
