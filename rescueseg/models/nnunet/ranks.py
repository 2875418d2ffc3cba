"""The processes of nnU-Net's DDP beside the first, watched so that one that ends does not leave the others waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException


def watch(others: ProcessContext, failed: Callable[[str], None]) -> threading.Thread:
    """Return a thread that ends with the processes.

    Parameters
    ----------
    others : ProcessContext
        What `start_processes` returned; from now on nobody else may join it.
    failed : callable
        Gets the last line of what the first process to fail said, once the rest of them are ended.
    """

    def look() -> None:
        try:
            while not others.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            failed(str(error).strip().splitlines()[-1])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread
