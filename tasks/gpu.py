"""Slots: which devices a job may use, and how many jobs run at once.

One slot a GPU; without GPUs, one slot a CPU core. A job that places servers on GPUs of its own
takes all its GPUs at once. A slot is two things: a lock on the device's
file, so that flows of several processes share the devices and a dead holder's device is free at
once; and an occupancy of a limit on Prefect's page (:mod:`tasks.leases`), which shows and limits
what runs. The lock chooses the device. The file names the lease, so a lease in a file that nobody
has locked is that of a dead holder.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reopold.config import ConfigError
from tasks import leases
from tasks.home import home
from tasks.launch import STOP, Interrupted

#: One waiter of this process polls at a time, about in the order they came.
_turnstile = threading.Lock()


@dataclass(frozen=True)
class Slot:
    """A device that is ours."""

    name: str
    handle: int
    """File descriptor of its lock."""

    def record(self, lease: str) -> None:
        """Write down the lease of its holder; "" for none."""
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, lease.encode(), 0)

    def recorded(self) -> str:
        return os.pread(self.handle, 100, 0).decode()


@dataclass(frozen=True)
class Held:
    """The devices of a job."""

    env: dict[str, str]
    """The environment that confines it to them."""
    slots: list[Slot]

    @property
    def handles(self) -> list[int]:
        """File descriptors of the locks. A job that has them open too (`keep_open` of
        :func:`tasks.launch.run_module`) keeps the devices while it saves, even if we are killed."""
        return [each.handle for each in self.slots]


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    return installed_gpus()


def installed_gpus() -> list[str]:
    """Ids of the GPUs of this machine."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def slots() -> list[str]:
    """Name of every slot that this process may take."""
    gpus = visible_gpus()
    if gpus:
        return [f"gpu-{gpu}" for gpu in gpus]
    return [f"cpu-{core}" for core in range(_cores())]


@contextmanager
def slot(gpus: int = 1) -> Iterator[Held]:
    """Wait for free slots and hold them: as many as GPUs are asked for; without GPUs, one core.

    Raises:
        ConfigError: so many GPUs are not here.
        Interrupted: a stop was asked for while waiting.
    """
    available = slots()
    kind = available[0].partition("-")[0]
    wanted = gpus if kind == "gpu" else 1
    if wanted > len(available):
        raise ConfigError(
            f"the job places models on {wanted} GPUs and {len(available)} can be seen: change "
            "engine.gpus and teacher.gpus, or take a recipe for fewer"
        )
    with _turnstile:
        taken = _take(available, wanted)
    try:
        installed = len(installed_gpus()) if kind == "gpu" else os.cpu_count() or 1
        size = max(len(available), installed)
        limit = leases.limit_name(kind)
        left = {each.recorded() for each in taken} - {""}

        def record(lease: str) -> None:
            for each in taken:
                each.record(lease)

        with leases.occupied(limit, size, left, record, wanted):
            chosen = [each.name.partition("-")[2] for each in taken] if kind == "gpu" else []
            env = {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
            yield Held(env, taken)
    finally:
        for each in taken:
            os.close(each.handle)


def held() -> dict[str, bool]:
    """Whether somebody has it now, for every slot of ours and every other that was ever taken."""
    found = {}
    for name in _known():
        with _probe(name) as free:
            found[name] = free is None
    return found


def stale_leases() -> dict[str, str]:
    """Leases of dead holders, by slot: Prefect may count them until they run out."""
    found = {}
    for name in _known():
        with _probe(name) as free:
            if free is not None and free.recorded():
                found[name] = free.recorded()
    return found


def release_stale_leases() -> dict[str, str]:
    """Give back the leases of dead holders; returns what was given back, by slot.

    Raises:
        httpx.HTTPError: Prefect's server is away or refuses.
    """
    given = {}
    for name in stale_leases():
        with _probe(name) as free:
            if free is not None and free.recorded():  # nobody came meanwhile
                given[name] = free.recorded()
                leases.release(free.recorded())
                free.record("")
    return given


def _take(available: list[str], wanted: int) -> list[Slot]:
    """All at once or none: two jobs that each held a part would wait for each other for ever."""
    while not STOP.is_set():
        taken: list[Slot] = []
        for name in available:
            found = _try(name)
            if found is not None:
                taken.append(found)
            if len(taken) == wanted:
                return taken
        for each in taken:
            os.close(each.handle)
        time.sleep(0.1)
    raise Interrupted("stopped while waiting for a free slot")


def _try(name: str) -> Slot | None:
    """The slot, if nobody has it; whoever gets it closes its handle."""
    _folder().mkdir(parents=True, exist_ok=True)
    handle = os.open(_folder() / name, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return Slot(name, handle)


@contextmanager
def _probe(name: str) -> Iterator[Slot | None]:
    free = _try(name)
    try:
        yield free
    finally:
        if free is not None:
            os.close(free.handle)


def _known() -> list[str]:
    used = [file.name for file in _folder().glob("*")]
    return sorted({*used, *slots()})


def _folder() -> Path:
    # A home on a shared file system serves several machines.
    return home() / "slots" / socket.gethostname()


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)))
