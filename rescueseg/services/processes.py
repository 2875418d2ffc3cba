"""Processes together with everything that they started: ending them, and which port they listen on."""

from __future__ import annotations

import os
import signal

import psutil

STOP_SECONDS = 10.0


def stop_tree(pid: int) -> None:
    """End a process, its process group and its descendants: first politely, after a while by force."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    _signal_group(pid, signal.SIGTERM)
    for process in family:
        _quietly(process, "terminate")
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for process in alive:
        _quietly(process, "kill")
    _signal_group(pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def listens(pid: int, port: int) -> bool:
    """Tell whether a process or a descendant of it, and not a stranger, listens on a TCP port."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    return any(port in _listening(process) for process in family)


def _listening(process: psutil.Process) -> set[int]:
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN}


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _quietly(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return
