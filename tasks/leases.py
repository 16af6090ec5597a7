"""A slot as Prefect's page shows it: an occupancy of a global concurrency limit of this host.

The limit is made once, with a slot for every device of the machine; after that it belongs to
whoever looks at the page, who may lower it. Prefect gives an occupancy as a lease that runs out
unless it is renewed. Taking one is strict: no job starts without. Keeping it is not: a server that
is away for a while must not end a healthy job, so a lease that ran out meanwhile is taken anew.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

from reopold.config import ConfigError
from tasks.launch import STOP, Interrupted

#: The shortest lease that Prefect gives, so that a dead holder's slot is soon free; renewals.
LEASE_SECONDS, RENEW_SECONDS = 60.0, 15.0
#: Between attempts to take a slot, and for one answer of the server.
WAIT_SECONDS, ANSWER_SECONDS = 1.0, 10.0


def limit_name(kind: str) -> str:
    """The limit of this host's devices; `kind` is gpu or cpu."""
    return f"reopold-{socket.gethostname()}-{kind}"


@contextmanager
def occupied(
    limit: str, size: int, left: Collection[str], record: Callable[[str], None], slots: int = 1
) -> Iterator[None]:
    """Hold slots of `limit` (made with `size` of them if it is not there) while the block runs: all
    by one lease, so that two jobs never hold a part each and wait for the other's.

    Outside a Prefect task there is no server to ask, and nothing is held.

    Args:
        left: leases of dead holders of the same devices, given back first.
        record: told the id of the lease whenever that changes, and "" once it is given back.

    Raises:
        ConfigError: a job of several slots needs more than the limit on Prefect's page.
        Interrupted: a stop was asked for while waiting.
    """
    task = TaskRunContext.get()
    if task is None:
        yield
        return
    holder = ConcurrencyLeaseHolder(type="task_run", id=task.task_run.id)
    lease = _Lease(limit, holder, record, slots)
    lease.wait(size, left)
    done = threading.Event()
    # In our context: Prefect's settings may be of it.
    renewal = threading.Thread(target=copy_context().run, args=(lease.keep, done), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join(ANSWER_SECONDS)
        lease.give_back()


def release(lease: str) -> None:
    """Give back the lease of a dead holder; one that has run out by itself is no error.

    Raises:
        httpx.HTTPError: the server is away or refuses.
    """
    with _client() as client:
        client.release_concurrency_slots_with_lease(UUID(lease))


class _Lease:
    def __init__(
        self,
        limit: str,
        holder: ConcurrencyLeaseHolder,
        record: Callable[[str], None],
        slots: int,
    ) -> None:
        self.limit, self.holder, self.record, self.slots = limit, holder, record, slots
        self.id: UUID | None = None

    def wait(self, size: int, left: Collection[str]) -> None:
        """Take a lease, however long that takes."""
        said = False
        while not STOP.is_set():
            try:
                with _client() as client:
                    there = _make_limit(client, self.limit, size)
                    if there < self.slots and self.slots > 1:
                        raise ConfigError(
                            f"the job takes {self.slots} GPUs at once and Prefect's limit "
                            f"{self.limit} is {there}: raise it, or take a recipe for fewer"
                        )
                    for lease in left:
                        client.release_concurrency_slots_with_lease(UUID(lease))
                    reason = self._take(client)
            except httpx.HTTPError as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                    raise
                reason = f"Prefect's server is away or busy ({error})"
            if self.id is not None:
                return
            if not said:
                get_run_logger().warning("waiting for a slot of %s: %s", self.limit, reason)
            said = True
            STOP.wait(WAIT_SECONDS)
        raise Interrupted(f"stopped while waiting for a slot of {self.limit}")

    def keep(self, done: threading.Event) -> None:
        """Renew until `done`; whatever goes wrong, the job goes on and the next turn tries."""
        while not done.wait(RENEW_SECONDS):
            with suppress(Exception), _client() as client:
                self._renew(client)

    def give_back(self) -> None:
        """Best effort: a lease that cannot be given back stays on record and runs out by itself."""
        with suppress(httpx.HTTPError):
            if self.id is not None:
                release(str(self.id))
            self.record("")

    def _renew(self, client: SyncPrefectClient) -> None:
        try:
            if self.id is not None:
                client.renew_concurrency_lease(self.id, LEASE_SECONDS)
                return
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 410:
                raise
            self.id = None  # it ran out while the server was away
        self._take(client)

    def _take(self, client: SyncPrefectClient) -> str:
        """Take a lease if there is one; else say why not."""
        try:
            response = client.increment_concurrency_slots_with_lease(
                names=[self.limit],
                slots=self.slots,
                mode="concurrency",
                lease_duration=LEASE_SECONDS,
                holder=self.holder,
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 423:
                raise
            return "on Prefect's page all of them are taken"
        answer = response.json()
        if not answer["limits"]:
            return "the limit has just been deleted"
        self.id = UUID(answer["lease_id"])
        self.record(str(self.id))
        return ""


def _client() -> SyncPrefectClient:
    """A client of its own: the task's would wait a minute for a server that is away."""
    return get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True)


def _make_limit(client: SyncPrefectClient, name: str, size: int) -> int:
    """The slots of the limit, which is made if it is not there."""
    try:
        return client.read_global_concurrency_limit_by_name(name).limit
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # by another process, just now
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=size)
            )
        return size
