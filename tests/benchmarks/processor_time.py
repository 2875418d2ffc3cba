"""Processor time of a benchmark with all processes that it starts."""

from __future__ import annotations

from contextlib import suppress

import psutil


def cpu_seconds() -> float:
    """Return the processor time of this process and all its children, living and ended."""
    me = psutil.Process()
    own = me.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in me.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return float(total)
