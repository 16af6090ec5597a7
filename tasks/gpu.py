"""Slots: which device a job may use, and how many jobs run at once.

One slot a GPU; without GPUs, one slot a CPU core. A slot is a file lock, so that flows of several
processes share the devices and a dead holder's slot is free at once.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.home import home
from tasks.launch import STOP, Interrupted

#: One waiter of this process polls at a time, about in the order they came.
_turnstile = threading.Lock()


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        str(index)
        for index, line in enumerate(listed.stdout.splitlines())
        if line.startswith("GPU ")
    ]


def slots() -> list[tuple[str, dict[str, str]]]:
    """Name and environment of every slot of this machine."""
    gpus = visible_gpus()
    if gpus:
        return [(f"gpu-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]
    return [(f"cpu-{core}", {"CUDA_VISIBLE_DEVICES": ""}) for core in range(_cores())]


@contextmanager
def slot() -> Iterator[dict[str, str]]:
    """Wait for a free slot and hold it; yields the environment that confines a job to it.

    Raises:
        Interrupted: a stop was asked for while waiting.
    """
    folder = home() / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    available = slots()
    with _turnstile:
        handle, env = _take(folder, available)
    try:
        yield env
    finally:
        os.close(handle)


def _take(folder: Path, available: list[tuple[str, dict[str, str]]]) -> tuple[int, dict[str, str]]:
    while not STOP.is_set():
        for name, env in available:
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            else:
                return handle, env
        time.sleep(0.1)
    raise Interrupted("stopped while waiting for a free slot")


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)))
