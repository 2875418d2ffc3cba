"""Arguments and options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from rescueseg.annotation.login import login_name

CampaignArgument = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign.")]
CampaignOrServerArgument = Annotated[
    str, typer.Argument(metavar="CAMPAIGN", help="Folder or URL of the campaign, or address of its annotation server.")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the campaign file, such as training.iterations=300."),
]
LeaseArgument = Annotated[str, typer.Argument(metavar="LEASE", help="Lease id, as 'queue next' printed it.")]
TicketArgument = Annotated[str, typer.Argument(metavar="TICKET", help="Ticket id.")]
AnnotatorOption = Annotated[
    str,
    typer.Option(
        "--annotator",
        "-a",
        default_factory=login_name,
        envvar="RESCUESEG_ANNOTATOR",
        help="Who you are.",
        show_default="your login name",
    ),
]


def plain_console() -> Console:
    """Return a console that prints lines as they are."""
    return Console(highlight=False, soft_wrap=True)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take options as records: each field of a parameter that is a dataclass becomes an option.

    Parameters
    ----------
    command : callable
        Its parameters, and the fields of the dataclasses among them, are annotated as Typer wants it.

    Returns
    -------
    callable
        What Typer is given: takes all options by name and makes the records of them.

    Examples
    --------
    >>> @dataclasses.dataclass
    ... class Size:
    ...     z: int = 1
    ...     y: int = 2
    >>> @option_groups
    ... def show(name: str, size: Size) -> None:
    ...     print(name, size)
    >>> inspect.signature(show)
    <Signature (*, name: str, z: int = 1, y: int = 2)>
    >>> show(name="a", z=3, y=4)
    a Size(z=3, y=4)
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _fields_as_parameters(groups[parameter.name])
        else:
            keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            parameters.append(keyword)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        records = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**values, **records)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def _fields_as_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in dataclasses.fields(group):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    return parameters
