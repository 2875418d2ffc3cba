"""The command line. Importing it imports neither torch, MONAI, MLflow nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

import typer

from rescueseg.cli import generation, sampling, upkeep, volumes
from rescueseg.cli.annotate import annotate
from rescueseg.cli.console import OneLineErrors
from rescueseg.cli.evaluate import compare, evaluate
from rescueseg.cli.queue import queue_app
from rescueseg.cli.segment import segment
from rescueseg.cli.serve import serve, token_app
from rescueseg.cli.simulate import simulate
from rescueseg.cli.train import train
from rescueseg.cli.triage import triage
from rescueseg.cli.upgrade import upgrade
from rescueseg.cli.view import view

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rescue hard 3D microscopy segmentations with the fewest annotated voxels.",
)
app.add_typer(queue_app, name="queue")
app.add_typer(token_app, name="token")
EXAMPLES: tuple[tuple[Callable[..., None], str], ...] = (
    (volumes.init, "init liver stack.tif --classes mitochondria --spacing 0.05,0.01,0.01"),
    (volumes.add, "add liver 'planes/*.tif' --spacing 0.05,0.01,0.01 --dry-run --picture look.png"),
    (triage, "triage liver --structure vessels"),
    (volumes.check, "check liver, then rescueseg check liver --apply"),
    (sampling.sample, "sample liver --dry-run --preview"),
    (sampling.weak_label, "weak-label liver --method classifier --scribbles scribbles.tif"),
    (annotate, "annotate liver --annotator anna"),
    (serve, "serve liver"),
    (generation.generation, "generation liver --dry-run"),
    (train, "train liver --trainer nnunet --dry-run"),
    (generation.infer, "infer liver second_stack"),
    (evaluate, "evaluate liver --generation 3 --json scores.json; or --training NAME"),
    (compare, "compare liver 2 3 --json differences.json; or the name of a training"),
    (segment, "segment liver --all new_stacks/ --out liver_results --format tiff --dry-run"),
    (view, "view liver_results second_stack"),
    (generation.status, "status liver"),
    (generation.up, "up liver"),
    (upgrade, "upgrade liver --dry-run"),
    (upkeep.verify, "verify liver --json damage.json"),
    (upkeep.backup, "backup liver /backups/liver --dry-run"),
    (upkeep.restore, "restore /backups/liver liver_again; or restore /backups/liver --list"),
    (
        simulate,
        "simulate stack.tif --truth labels.tif --regime low=24 --loops 4 --cpu-seconds 120 --out benchmark --dry-run",
    ),
    (generation.demo, "demo --dataset cdeep3m_mito_train --data-dir /data/volumes --generations 3 --out demo"),
)
"""Every command, in the order of a campaign, with the example that its ``--help`` ends with."""
for _command, _example in EXAMPLES:
    app.command(epilog=f"Example: rescueseg {_example}")(_command)
