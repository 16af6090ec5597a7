"""What runs, or says it runs: processes, slots, flow runs on Prefect's page, runs in MLflow."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from tasks import gpu
from tasks.alive import FlowFile, buried, flow_files
from tasks.findings import Finding
from tasks.home import dashboard_file
from tasks.orphans import Process, end, orphans, was_there

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

#: Flow runs that one question to Prefect brings.
PAGE = 200


def processes() -> Iterator[Finding]:
    """Processes whose launcher is gone, by launch."""
    families: dict[tuple[int, int], list[Process]] = defaultdict(list)
    for process in orphans():
        families[process.family].append(process)
    others = (file for file in flow_files() if file.content.get("pid") != os.getpid())
    flows_run = any(file.alive for file in others)
    for (owner, session), family in families.items():
        mend, fix = "end them: SIGTERM, and SIGKILL after a grace", None
        if any(process.trains for process in family):
            # A second SIGTERM would cost the checkpoint that it is saving.
            mend = f"wait: it saves a checkpoint and ends; if it does not, kill -9 -{session}"
        elif flows_run and any(process.serves for process in family):
            mend = "wait until no flow runs here: it may be one's server"
        else:
            fix = partial(end, family)
        yield Finding(
            check="process",
            where=", ".join(str(process.pid) for process in family),
            found=f"{family[0].title}: its launcher (process {owner}) is gone",
            mend=mend,
            fix=fix,
        )
    file = dashboard_file()
    if file.exists() and not _dashboard_runs(file):
        yield Finding(
            check="process",
            where=file.name,
            found="it names a dashboard whose servers are gone",
            mend="delete the file",
            fix=partial(file.unlink, missing_ok=True),
        )


def _dashboard_runs(file: Path) -> bool:
    """Whether a process that the file names is there; a server that is slow to answer is."""
    try:
        pids = json.loads(file.read_text(encoding="utf-8"))["pids"].values()
        return any(was_there(int(pid), file.stat().st_mtime) for pid in pids)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def slots() -> Iterator[Finding]:
    """Slots that Prefect counts as taken although their holder is dead."""
    for name, lease in gpu.stale_leases().items():
        yield Finding(
            check="slot",
            where=name,
            found=f"its holder is gone, and Prefect counts its lease {lease} until it runs out",
            mend="give the lease back",
            fix=_release_slots,
        )


def _release_slots() -> None:
    gpu.release_stale_leases()


def flow_runs() -> Iterator[Finding]:
    """Flow runs that Prefect shows as under way although their process is gone."""
    from prefect.client.orchestration import get_client

    files = flow_files()
    with get_client(sync_client=True) as client:
        under_way = _under_way(client)
    for file in files:
        run = under_way.pop(file.flow_run_id, None)
        if file.alive is None and run is not None:
            yield Finding(
                check="flow run",
                where=file.flow_run_id,
                found=f"{file.title}: whether it is alive only its own host knows",
                mend=f"run reopold doctor there; if there is no such host, delete {file.path}",
                fault=False,
            )
        elif file.alive is False:
            yield from _dead(file, run)
    if under_way:
        names = sorted(run.name for run in under_way.values())
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        yield Finding(
            check="flow run",
            where=shown,
            found=f"{len(names)} under way on Prefect's page, without a process known here: of "
            "another host or project, just starting, or killed as they started",
            mend="look at them there",
            fault=False,
        )


def _dead(file: FlowFile, run: FlowRun | None) -> Iterator[Finding]:
    """What is to be done about a flow run whose process is gone."""
    if run is None:
        yield Finding(
            check="flow run",
            where=file.flow_run_id,
            found=f"{file.title} is gone, and on Prefect's page it is not under way",
            mend="delete its file",
            fix=partial(_close, file),
        )
    elif _same_attempt(file, run):
        state = "Cancelled" if _cancelling(run) else "Crashed"
        yield Finding(
            check="flow run",
            where=file.flow_run_id,
            found=f"{file.title} is gone, and Prefect says {run.state_name}",
            mend=f"set it to {state}; starting it again goes on from its checkpoints",
            fix=partial(_close, file),
        )
    else:
        yield Finding(
            check="flow run",
            where=file.flow_run_id,
            found=f"{file.title} is gone; another attempt at it is {run.state_name}",
            mend="wait: the attempt says by itself that it is alive",
            fault=False,
        )


def _same_attempt(file: FlowFile, run: FlowRun) -> bool:
    """Whether the process that is gone is the one whose state Prefect shows, not a retry's."""
    return _cancelling(run) or str(run.state_id) == file.content.get("state")


def _cancelling(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_cancelling()


def _close(file: FlowFile) -> None:
    """Say on Prefect's page that the flow run is over, as Prefect itself would have."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Crashed

    with buried(file), get_client(sync_client=True) as client:
        run = _under_way(client, UUID(file.flow_run_id)).get(file.flow_run_id)
        if run is None:
            return
        if not _same_attempt(file, run):
            raise RuntimeError("another attempt has begun meanwhile")
        message = f"{file.title} ended without a word; reopold doctor found its lock free."
        # Cancelled was what somebody asked for; Crashed would have an automation start it again.
        state = Cancelled if _cancelling(run) else Crashed
        client.set_flow_run_state(run.id, state(message=message), force=True)


def _under_way(client: SyncPrefectClient, only: UUID | None = None) -> dict[str, FlowRun]:
    """Flow runs that Prefect calls pending, running or cancelling, by id."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    wanted = filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types)),
        id=filters.FlowRunFilterId(any_=[only]) if only else None,
    )
    found: dict[str, FlowRun] = {}
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=len(found))
        found |= {str(run.id): run for run in page}
        if len(page) < PAGE:
            return found
