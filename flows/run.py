"""Run one flow here, against the server that the environment names: ``python -m flows.run generation '{…}'``.

The command line starts flows this way, so that the library need not import Prefect.
"""

from __future__ import annotations

import importlib
import json
import sys

from rescueseg.errors import RescuesegError

FLOWS = {
    "generation": "flows.generation:generation",
    "active-learning": "flows.active_learning:active_learning",
    "infer-volume": "flows.infer_volume:infer_volume",
    "segment": "flows.segment:segment",
    "train": "flows.train:train",
    "triage": "flows.triage:triage",
}
"""Flows by the name that Prefect shows."""


def main(name: str, parameters: str) -> int:
    """Run a flow with its parameters as JSON; print the result as JSON, or one line on what went wrong."""
    module, _, function = FLOWS[name].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(**json.loads(parameters))
    except RescuesegError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    print(f"result: {json.dumps(result)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
