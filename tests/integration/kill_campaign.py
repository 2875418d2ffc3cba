"""Kill -9 a small phantom campaign at many moments, rerun it, and compare it with an undisturbed run.

Every run has its own campaign folder and starts the active-learning flow in a process of its own against one real
Prefect server and one real MLflow server. At each moment either the flow's whole process group is killed (workers
included) or one Dask worker alone; then the same command is run again. It must finish with the model digests, queried
patches and accepted annotations of the undisturbed run. Exits with 1 when any of them differs.

    python tests/integration/kill_campaign.py --moments 10
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import tifffile

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import INFERENCE, QUERY, TRAINING
from rescueseg.config import check_config
from rescueseg.evaluation.champion import EVALUATION
from rescueseg.queue.store import open_queue
from rescueseg.services.local_servers import Servers
from rescueseg.services.prefect_api import LOOP_FLOW, flow_command
from rescueseg.volumes.batch_import import start_campaign
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.volume_files import VolumeImport

GENERATIONS = 2
SETTINGS: dict[str, Any] = {
    "name": "killed",
    "classes": ["organelle"],
    "sampling": {"starting_patches": 3, "query_patches": 2},
    "training": {
        "iterations": 24,
        "checkpoint_every": 4,
        "warm_start": True,
        "window_zyx": [8, 32, 32],
        "unet": {"channels": [8, 16, 32]},
        "threads": 1,
    },
    "inference": {"mc_samples": 2, "tta_symmetries": 2, "block_voxels": 40_000},
    "cluster": {"workers": 1},
}


def make_campaign(folder: Path, work: Path) -> Campaign:
    """Start the small phantom campaign; every call makes the same one."""
    raw, truth = work / "raw.tif", work / "truth.tif"
    if not raw.exists():
        image, labels, _ = make_phantom((16, 96, 96), (0.09, 0.03, 0.03), seed=3)
        tifffile.imwrite(raw, image)
        tifffile.imwrite(truth, labels)
    return start_campaign(
        str(folder),
        check_config(SETTINGS),
        [VolumeImport(str(raw), spacing=(0.09, 0.03, 0.03), truth=str(truth), truth_type="semantic")],
        say=lambda _line: None,
    )


def start(campaign: Campaign, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start the active-learning flow in a process group of its own."""
    parameters = {"campaign_url": campaign.url, "generations": GENERATIONS}
    with log.open("ab") as file:
        return subprocess.Popen(
            flow_command(LOOP_FLOW, parameters), env=environment, stdout=file, stderr=file, start_new_session=True
        )


def outcome(campaign: Campaign) -> dict[str, Any]:
    """Return what must not depend on kills."""
    generations = range(GENERATIONS)
    accepted = open_queue(campaign).views.accepted("pool")
    return {
        "models": [campaign.generation(g).require(TRAINING).model.digest for g in generations],
        "maps": [[m.digest for m in campaign.generation(g).require(INFERENCE)] for g in generations],
        "queried": [campaign.generation(g).require(QUERY).patches for g in generations],
        "annotations": sorted((a.ticket_id, a.labels_digest) for a in accepted),
        "test": [campaign.generation(g).require(EVALUATION) for g in generations],
    }


def kill(process: subprocess.Popen[bytes], only_worker: bool) -> str:
    """Kill -9 the whole flow, or its youngest Dask worker; say what was killed."""
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in children if "spawn_main" in " ".join(_command(p))]
    if only_worker and workers:
        workers[-1].kill()
        return "a worker"
    for child in children:
        child.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "everything"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def finish(campaign: Campaign, environment: dict[str, str], log: Path) -> float:
    """Run the flow to its end and return the seconds it took."""
    began = time.monotonic()
    process = start(campaign, environment, log)
    if process.wait(timeout=600):
        raise SystemExit(f"the rerun failed; see {log}\n{log.read_text(errors='replace')[-3000:]}")
    return time.monotonic() - began


def state_of(campaign: Campaign) -> str:
    """Say how far a campaign has got."""
    generations = campaign.generations()
    done = generations[-1].finished_stages() if generations else []
    return f"generation {max(0, len(generations) - 1)}, {done[-1] if done else 'nothing'} done"


def main() -> int:
    """Run the comparison and print one line for each moment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10, help="how many runs to kill, evenly spread over its time")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="rescueseg-kill-"))
    differing = 0
    try:
        with Servers(work / "services", f"sqlite:///{work / 'mlflow.db'}") as servers:
            environment = servers.environment
            whole = make_campaign(work / "undisturbed", work)
            seconds = finish(whole, environment, work / "undisturbed.log")
            expected = outcome(whole)
            print(f"undisturbed: {seconds:.0f} s", flush=True)
            for moment in range(1, arguments.moments + 1):
                after = seconds * moment / (arguments.moments + 1)
                campaign = make_campaign(work / f"killed{moment}", work)
                log = work / f"killed{moment}.log"
                process = start(campaign, environment, log)
                time.sleep(after)
                killed = kill(process, only_worker=moment % 4 == 0)
                where = state_of(campaign)
                if killed == "a worker":
                    process.wait(timeout=600)
                again = finish(campaign, environment, log)
                found = outcome(campaign)
                wrong = [name for name in expected if found[name] != expected[name]]
                differing += bool(wrong)
                verdict = f"DIFFERS in {', '.join(wrong)}" if wrong else "the same"
                print(f"killed {killed} after {after:5.1f} s ({where}); rerun {again:.0f} s: {verdict}", flush=True)
                shutil.rmtree(campaign.url)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{arguments.moments - differing} of {arguments.moments} killed campaigns ended like the undisturbed one")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
