"""The processes of nnU-Net's DDP beside the first, watched so that one that ends does not leave the others waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException


def watch(others: ProcessContext, on_failure: Callable[[str], None]) -> threading.Thread:
    """Return a thread that ends with the processes.

    Parameters
    ----------
    others : ProcessContext
        What `start_processes` returned; from now on nobody else may join it.
    on_failure : callable
        Called with the last line of the first failure's message, once the other processes have ended.
    """

    def join() -> None:
        try:
            while not others.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            on_failure(str(error).strip().splitlines()[-1])

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    return thread
