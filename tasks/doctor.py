"""`reopold doctor`: what a crash, a kill or a full disk has left behind, and the mending of it.

Nothing here guesses from time: what is alive holds a lock that the kernel frees with its holder
(a trainer its run directory's, a flow its file in `flows/`, a job its slot's) or is a process that
the kernel shows. Whatever is alive is left alone, and each thing is looked at again, under its
lock, before it is mended. So it may run at any time, twice as well as once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL
from pydantic import BaseModel, ConfigDict
from sqlalchemy import make_url

from tasks import doctor_disk, doctor_live, doctor_mlflow
from tasks.doctor_disk import Usage
from tasks.findings import CheckName, Finding, guarded
from tasks.home import amount, home, http_status


class Examination(BaseModel):
    """What was found in a home, and how much room its studies take."""

    model_config = ConfigDict(frozen=True)

    home: str
    findings: list[Finding]
    usage: list[Usage]
    free: int
    """Bytes."""

    @property
    def left(self) -> list[Finding]:
        """Faults that are still there."""
        return [finding for finding in self.findings if finding.left]

    @property
    def summary(self) -> str:
        """What remains, and the room that each study takes, for a terminal."""
        mended = sum(finding.fixed is True for finding in self.findings)
        said = f"{mended} mended, {len(self.left)} left" if mended else f"faults: {len(self.left)}"
        return "\n".join([*map(_line, self.usage), f"{amount(self.free)} free", said])


def examine(*, fix: bool = False, quick: bool = False) -> Examination:
    """Look at everything, and mend each fault on its own if `fix`.

    Prefect or MLflow that do not answer are findings like others. Neither is started where it has
    never been used.

    Args:
        quick: compare the sizes of a checkpoint's files only, not their SHA-256.
    """
    away = list(_prefect_away())
    stages: list[tuple[CheckName, Callable[[], Iterable[Finding]]]] = [
        ("Prefect", lambda: away),
        ("run directory", doctor_disk.run_directories),
        ("checkpoint", partial(doctor_disk.checkpoints, quick=quick)),
        ("disk", doctor_disk.disk),
    ]
    if not away and _prefect_used():
        stages[1:1] = [("slot", doctor_live.slots), ("flow run", doctor_live.flow_runs)]
    # After the manifests, which it ships; and last the processes, of which Prefect may be one.
    stages += [("MLflow", doctor_mlflow.mlflow_runs), ("process", doctor_live.processes)]
    return Examination(
        home=str(home()),
        findings=[finding for name, stage in stages for finding in guarded(name, stage, fix=fix)],
        usage=doctor_disk.usage(),
        free=doctor_disk.free_bytes(),
    )


def _prefect_away() -> Iterator[Finding]:
    """A server that is named and does not answer."""
    url = PREFECT_API_URL.value()
    if url and http_status(f"{url}/health") != 200:
        yield Finding(
            check="Prefect",
            where=url,
            found="it does not answer: flow runs and slots are not checked",
            mend="start it, correct PREFECT_API_URL, or unset it",
        )


def _prefect_used() -> bool:
    """Whether there is a server, or the database of one that lasted as long as its flow."""
    if PREFECT_API_URL.value():
        return True
    database = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value())
    return not database.drivername.startswith("sqlite") or Path(database.database or "").exists()


def _line(usage: Usage) -> str:
    sizes = usage.model_dump(exclude={"study"})
    return f"{usage.study}: " + ", ".join(f"{k} {amount(v)}" for k, v in sizes.items() if v)
