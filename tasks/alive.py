"""Which flow runs are alive, by the kernel's word: a flow holds a lock on a file while it runs.

    .reopold/flows/FLOW_RUN_ID.json     pid, host, flow, name, folder, state, api, started

A heartbeat that is late says nothing: a server may have been away, a machine asleep. A lock that is
free says that its holder is gone, by SIGKILL, by the OOM killer or by a loss of power. The kernel
knows that of its own machine only, so nothing is concluded from another host's file.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from reopold.run_dir import Record
from tasks.home import home, http_status


@dataclass(frozen=True)
class FlowFile:
    """A flow run of this home that has not said that it ended."""

    path: Path
    content: Record
    alive: bool | None
    """None: this kernel cannot know; it began on another host, or at this very moment."""

    @property
    def flow_run_id(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> str:
        """What the flow works on; "" if nothing that outlasts it."""
        return str(self.content.get("folder", ""))

    @property
    def title(self) -> str:
        """The flow, its run's name and where it runs, as a person would say it."""
        known = {"flow": "a flow", "name": "?", "pid": "?", "host": "?", **self.content}
        return "{flow} {name} (process {pid} on {host})".format(**known)


@contextmanager
def alive(folder: str | Path = "") -> Iterator[None]:
    """Hold this flow run's file while the body of the flow runs; to be called in it.

    Args:
        folder: what the flow works on, a run directory or a study's; nobody else mends it.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        raise RuntimeError("alive() belongs into the body of a flow; no flow runs here")
    state = context.flow_run.state
    content = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "flow": context.flow.name,
        "name": context.flow_run.name,
        "folder": str(Path(folder).resolve()) if folder else "",
        "state": str(state.id) if state else "",  # another attempt at the run has another state
        # An ephemeral server's too: whoever asks Prefect meanwhile must not start a second one.
        "api": str(get_client(sync_client=True).api_url).rstrip("/"),
        "started": time.time(),
    }
    path = _folder() / f"{context.flow_run.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _hold(path)
    try:
        handle.truncate(0)
        handle.write(json.dumps(content))
        handle.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        handle.close()


def flow_files() -> list[FlowFile]:
    """Every flow run of this home that has not said that it ended, the oldest first."""
    found = [_look(path) for path in sorted(_folder().glob("*.json"))]
    return sorted(filter(None, found), key=lambda file: float(file.content.get("started", 0)))


def at_work_on(path: Path, files: Sequence[FlowFile]) -> bool:
    """Whether one of the flows, as far as can be known, works on `path` or on something in it."""
    path = path.resolve()
    folders = [Path(f.folder) for f in files if f.alive is not False and f.folder]
    return any(path.is_relative_to(each) or each.is_relative_to(path) for each in folders)


@contextmanager
def buried(file: FlowFile) -> Iterator[None]:
    """Keep a dead flow run from being retried meanwhile; then its file is deleted.

    Raises:
        RuntimeError: it has begun again, or somebody else looks at it.
    """
    handle = _open(file.path)
    try:
        if not _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise RuntimeError(f"{file.title} has begun again, or somebody else looks at it")
        yield
        file.path.unlink(missing_ok=True)
    finally:
        handle.close()


def join_living_server() -> None:
    """Where no Prefect server is named: use that of a flow that is alive.

    Call it before prefect is imported. A second server on its SQLite file could give the flow
    "database is locked".
    """
    for file in flow_files():
        api = str(file.content.get("api", ""))
        if os.environ.get("PREFECT_API_URL") or not file.alive:
            continue
        if api.startswith("http://127.0.0.1:") and http_status(f"{api}/health") == 200:
            os.environ["PREFECT_API_URL"] = api


def _folder() -> Path:
    return home() / "flows"


def _hold(path: Path) -> TextIO:
    """The locked file; not one that was deleted between opening and locking it (a retry)."""
    while True:
        handle = _open(path)
        _lock(handle, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
            return handle
        handle.close()


def _open(path: Path) -> TextIO:
    return open(path, "a+", encoding="utf-8")


def _lock(handle: TextIO, how: int) -> bool:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    return True


def _look(path: Path) -> FlowFile | None:
    """None where the flow ended while we looked."""
    try:
        with open(path, encoding="utf-8") as handle:
            held = not _lock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            text = handle.read()
    except FileNotFoundError:
        return None
    try:
        content = dict(json.loads(text))
    except (ValueError, TypeError):  # between opening and writing
        content = {}
    if held:
        return FlowFile(path, content, True)
    return FlowFile(path, content, False if content.get("host") == socket.gethostname() else None)
