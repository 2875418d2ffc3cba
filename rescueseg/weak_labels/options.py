"""Which options of the command a method reads: one that it would not read is refused, for whoever gave it meant something."""

from __future__ import annotations

from dataclasses import fields

from rescueseg.errors import WeakLabelError
from rescueseg.weak_labels.choice import Sources
from rescueseg.weak_labels.methods import METHODS
from rescueseg.weak_labels.published_methods import PUBLISHED, method_of

OPTIONS = {
    "scribbles": "--scribbles",
    "ilp": "--ilp",
    "from_campaign": "--from-campaign",
    "weights": "--weights",
    "diameter_um": "--diameter",
    "licence": "--licence",
    "python": "--python",
}
"""By field of `Sources`."""
READ: dict[str, tuple[str, ...]] = {
    "classifier": ("scribbles",),
    "ilastik": ("ilp",),
    "champion": ("from_campaign",),
    **{name: (*entry.needs, "licence") for name, entry in PUBLISHED.items()},
}
"""Fields of `Sources` that a method reads; the others read none."""


def check_options(method: str, sources: Sources) -> None:
    """Refuse what a method would not read.

    Parameters
    ----------
    method : str
        One of `METHODS`, or "auto", which reads all but what belongs to weights that were not given.
    sources : Sources
        What a person gave.

    Raises
    ------
    WeakLabelError
        It names every such option.

    Examples
    --------
    >>> check_options("ilastik", Sources(ilp="cells.ilp"))
    >>> try:
    ...     check_options("blobs", Sources(ilp="cells.ilp", diameter_um=8.0))
    ... except WeakLabelError as error:
    ...     print(error.what)
    the method 'blobs' does not read --ilp, --diameter
    """
    if method != "auto" and method not in METHODS:
        return  # that is told elsewhere
    used = method_of(sources) if method == "auto" else method
    read = set(READ.get(used, ()))
    if method == "auto":
        read |= {"scribbles", "ilp", "from_campaign"}
    given = [f.name for f in fields(Sources) if getattr(sources, f.name) not in ((), "", None)]
    unread = [OPTIONS[name] for name in given if name not in read]
    if not unread:
        return
    reads = ", ".join(OPTIONS[name] for name in READ.get(used, ()))
    if not used:
        what, todo = f"{', '.join(unread)} says something of weights, and none are given", "Give --weights PATH too"
    else:
        what = f"the method '{used}' does not read {', '.join(unread)}"
        todo = f"Leave {'it' if len(unread) == 1 else 'them'} out, or name another --method; this one reads {reads or 'the image alone'}"
    raise WeakLabelError(what, where="--method", todo=todo)
