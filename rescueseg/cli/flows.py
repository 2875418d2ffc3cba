"""Running flows in a process of their own with the servers they need, and serving a campaign."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from rescueseg.campaign import Campaign, GenerationFolder
from rescueseg.campaign.record_file import seconds_file
from rescueseg.campaign.stage_results import PROGRESS
from rescueseg.errors import ServiceError
from rescueseg.queue.store import open_queue
from rescueseg.services.local_servers import Servers, connect, exit_on_sigterm
from rescueseg.services.prefect_api import GENERATION_FLOW, deploy, deployment_name, flow_command, start_deployment
from rescueseg.services.prefect_server import make_private, where_prefect
from rescueseg.services.processes import stop_tree
from rescueseg.stages.due import count_due

SPEAK_SECONDS = 20.0
"""Between two lines of progress where no terminal shows it live."""


def run_flow(
    campaign: Campaign,
    flow: str,
    parameters: Mapping[str, JsonValue],
    console: Console,
    progress: Callable[[], str] | None = None,
) -> None:
    """Run a flow to its end and show the stages as they finish; servers are started when none run.

    Parameters
    ----------
    campaign : Campaign
        The campaign; its services folder takes the log.
    flow : str
        Name as Prefect shows it.
    parameters : mapping
        JSON-ready.
    console : rich.console.Console
        Where progress is shown.
    progress : callable, optional
        Says how far the flow is; the running stage of the last generation when omitted.

    Raises
    ------
    ServiceError
        If the flow failed; the message says why and where its log is.
    """
    console.print("Starting the servers…", style="dim")
    with (
        exit_on_sigterm(),
        connect(campaign.services_folder, campaign.tracking_uri, campaign.config.tracking.mlflow_uri) as environment,
    ):
        watch_flow(campaign, flow, parameters, environment, console, progress)


def watch_flow(
    campaign: Campaign,
    flow: str,
    parameters: Mapping[str, JsonValue],
    environment: Mapping[str, str],
    console: Console,
    progress: Callable[[], str] | None = None,
) -> None:
    """Run a flow against servers that run already; see `run_flow`."""
    log = campaign.services_folder / f"{flow}.log"
    make_private(log.parent)
    log_start = log.stat().st_size if log.exists() else 0
    printed = set(finished_stages(campaign.generations()))
    with log.open("ab") as file:
        process = subprocess.Popen(
            flow_command(flow, parameters),
            cwd=campaign.services_folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with console.status("") as status:
            line_time = time.monotonic()
            while process.poll() is None:
                time.sleep(0.5)
                for generation, stage in finished_stages(campaign.generations()):
                    if (generation, stage) not in printed:
                        printed.add((generation, stage))
                        seconds = campaign.generation(generation).read(seconds_file(stage)) or 0.0
                        console.print(f"generation {generation}  {stage:<10} {seconds:6.1f} s", highlight=False)
                now = progress() if progress else running_stage(campaign.generations())
                status.update(f"running {flow}{now}; log: {log}")
                if not console.is_terminal and now and time.monotonic() - line_time > SPEAK_SECONDS:
                    line_time = time.monotonic()
                    console.print(f"…{now.removeprefix(',')}", highlight=False)
    finally:
        stop_tree(process.pid)
        process.wait()
    if process.returncode:
        raise ServiceError(
            f"the flow failed: {_why(log, log_start)}",
            where=str(log),
            todo="Run the command again to go on from there",
        )


def running_stage(generations: Sequence[GenerationFolder]) -> str:
    """Say how far the running stage is."""
    if not generations or "report" in (last := generations[-1]).finished_stages():
        return ""
    note = last.read(PROGRESS)
    if note is None:
        return ""
    what, done, total = note
    return f", generation {last.number}: {what} {done}" + (f" of {total}" if total else "")


def finished_stages(generations: Iterable[GenerationFolder]) -> Iterator[tuple[int, str]]:
    """Yield the finished stages of all generations; this is asked twice a second, so no result is read."""
    for generation in generations:
        for stage in generation.finished_stages():
            yield generation.number, stage


def _why(log: Path, start: int) -> str:
    """Return why a flow failed, from what it wrote into its log since `start`."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return next((line[7:] for line in reversed(lines) if line.startswith("Error: ")), "\n".join(lines[-15:]))


def serve(campaign: Campaign, console: Console) -> None:
    """Serve a campaign until Ctrl-C or SIGTERM: servers, worker, deployments, annotation.

    A generation that is due already, or was interrupted, is started at once.

    Raises
    ------
    ServiceError
        If a server or the worker does not start, or ends.
    """
    console.print("Starting the servers…", style="dim")
    with (
        exit_on_sigterm(),
        Servers(
            campaign.services_folder,
            campaign.tracking_uri,
            mlflow_uri=campaign.config.tracking.mlflow_uri,
        ) as servers,
    ):
        deploy(campaign, servers)
        servers.serve_annotation(campaign.url)
        if (due := count_due(campaign, open_queue(campaign))).due:  # its event came while nothing was served
            start_deployment(servers.prefect, deployment_name(GENERATION_FLOW, campaign.config), {})
            console.print(f"Generation {due.generation} starts: {due.reason}", highlight=False)
        console.print(f"Annotate {servers.annotation_url}", highlight=False)
        console.print(f"Prefect  {where_prefect(servers.prefect, servers.folder)}", highlight=False, soft_wrap=True)
        console.print(f"MLflow   {servers.mlflow_uri}", highlight=False)
        console.print(f"Campaign {campaign.url}", highlight=False)
        console.print("Generations start by themselves; Ctrl-C stops everything.", style="dim")
        try:
            while not (name := servers.dead_process()):
                time.sleep(1.0)
        except KeyboardInterrupt:
            console.print("Stopping…", style="dim")
            return
        raise ServiceError(
            f"the {name} ended",
            where=str(campaign.services_folder / f"{name}.log"),
            todo=f"Its last lines:\n{servers.log_tail(name)}",
        )
