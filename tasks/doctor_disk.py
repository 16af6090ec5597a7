"""What lies on the disk of a home: run directories, their checkpoints, and the room they take.

A run that somebody trains is left alone, and whatever is mended is mended under the run's lock,
after another look: a trainer may have begun meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from reopold.config import ConfigError
from reopold.integrity import PRUNED, faults
from reopold.resume import set_aside
from reopold.run_dir import Record, RunDir
from tasks.alive import at_work_on, flow_files
from tasks.findings import Finding
from tasks.home import amount, home, relative
from tasks.preflight import OVERHEAD_BYTES


class Usage(BaseModel):
    """Bytes that one study takes."""

    model_config = ConfigDict(frozen=True)

    study: str
    checkpoints: int = 0
    damaged: int = 0
    temporary: int = 0
    rollouts: int = 0
    dumps: int = 0
    evaluations: int = 0


def run_directories() -> Iterator[Finding]:
    """Runs whose trainer died without a word, and the folders it was writing."""
    for run in _runs():
        where = relative(run.path)
        try:
            running = run.manifest()["status"] == "running"
        except ConfigError as error:
            mend = "delete the file: the next start writes another"
            yield Finding(check="run directory", where=where, found=str(error), mend=mend)
            continue
        last = _last_holder(run)
        by = "its trainer ({pid} on {host})".format(**last) if last else "its trainer"
        if _elsewhere(run):
            found = f"{by} is of another host, so whether it is at work cannot be known here"
            mend = "run reopold doctor there; if it is gone, start the run again anywhere"
            yield Finding(check="run directory", where=where, found=found, mend=mend, fault=False)
        elif running:
            yield Finding(
                check="run directory",
                where=where,
                found=f"the manifest says running, but {by} is gone",
                mend="set its status to stopped; the next start goes on from its last checkpoint",
                fix=partial(_set_stopped, run, by),
            )
        yield from _leftovers(run)


def checkpoints(*, quick: bool) -> Iterator[Finding]:
    """Checkpoints whose files are not what was written: by SHA-256, or if `quick` by size."""
    folders = [
        (run, folder)
        for run in _idle_runs()
        for folder in sorted(run.checkpoints.glob("step-*"))
        if folder.is_dir() and not (folder / PRUNED).exists()
    ]
    sizes = [folder_bytes(folder) for _, folder in folders]
    # disable=None: no bar where nobody looks (a pipe, a log, a flow).
    with tqdm(
        desc="reading checkpoints", total=sum(sizes), unit="B", unit_scale=True, disable=None
    ) as bar:
        for (run, folder), size in zip(folders, sizes, strict=True):
            wrong = faults(folder, quick=quick)
            bar.update(size)
            if wrong and folder.exists():  # one that was pruned meanwhile is no fault
                yield Finding(
                    check="checkpoint",
                    where=relative(folder),
                    found="; ".join(wrong),
                    mend="set it aside under a name that nothing reads; the run goes on from the "
                    "checkpoint before it",
                    fix=partial(_set_aside, run, folder, quick),
                )


def usage() -> list[Usage]:
    """What each study takes, by kind."""
    patterns = {
        "checkpoints": "runs/*/checkpoints/step-*",
        "damaged": "runs/*/checkpoints/damaged-*",
        "temporary": "runs/*/checkpoints/.step-*",
        "rollouts": "runs/*/rollouts",
        "dumps": "runs/*/dumps",
        "evaluations": "runs/*/eval",
    }
    return [
        Usage(
            study=study.name,
            **{kind: sum(map(folder_bytes, study.glob(each))) for kind, each in patterns.items()},
        )
        for study in sorted(home().glob("studies/*"))
        if study.is_dir()
    ]


def disk() -> Iterator[Finding]:
    """What may be freed by hand, and whether one more checkpoint still fits."""
    for kind in ("checkpoints/damaged-*", "dumps"):
        for study in sorted(home().glob("studies/*")):
            size = sum(map(folder_bytes, study.glob(f"runs/*/{kind}")))
            if size:
                yield Finding(
                    check="disk",
                    where=f"studies/{study.name}/runs/*/{kind}",
                    found=f"{amount(size)} that no run reads",
                    mend="look at them, then delete them by hand",
                    fault=False,
                )
    largest = max(map(folder_bytes, home().glob("studies/*/runs/*/checkpoints/step-*")), default=0)
    free = free_bytes()
    if largest and free < largest + OVERHEAD_BYTES:
        yield Finding(
            check="disk",
            where=str(home()),
            found=f"{amount(free)} are free, and one more checkpoint takes {amount(largest)}",
            mend="delete what is no longer wanted, or move the home with REOPOLD_HOME",
        )


def free_bytes() -> int:
    """Free on the disk of the home, which need not be there yet."""
    return shutil.disk_usage(next(each for each in (home(), *home().parents) if each.exists())).free


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(base) / name).lstat().st_size
    return total


def _runs() -> list[RunDir]:
    """The runs of this home on which nobody is at work, as far as this kernel knows."""
    flows = flow_files()
    runs = [RunDir(file.parent) for file in sorted(home().glob("studies/*/runs/*/config.json"))]
    return [run for run in runs if run.holder() is None and not at_work_on(run.path, flows)]


def _idle_runs() -> list[RunDir]:
    return [run for run in _runs() if not _elsewhere(run)]


def _elsewhere(run: RunDir) -> bool:
    """Whether a trainer of another host may be at work: not every file system shares its locks."""
    host = _last_holder(run).get("host", socket.gethostname())
    return host != socket.gethostname() and _status(run) == "running"


def _status(run: RunDir) -> str:
    try:
        return str(run.manifest()["status"])
    except ConfigError:
        return "damaged"


def _last_holder(run: RunDir) -> Record:
    """`pid`, `host` and `since` of whoever held the run's lock last; {} if it does not say."""
    try:
        last: Record = json.loads((run.path / ".lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return last


def _set_stopped(run: RunDir, by: str) -> None:
    with run.lock():
        manifest = run.manifest()
        if manifest["status"] == "running":
            message = f"{by} died without a word; reopold doctor closed the run"
            run.update_manifest(status="stopped", message=message)
            run.event("stop", int(manifest["step"]), message)


def _leftovers(run: RunDir) -> Iterator[Finding]:
    folders = sorted(run.checkpoints.glob(".step-*"))
    if folders and not _elsewhere(run):
        size = amount(sum(map(folder_bytes, folders)))
        yield Finding(
            check="run directory",
            where=f"{relative(run.checkpoints)}/.step-*",
            found=f"checkpoints that were never finished ({len(folders)}, {size})",
            mend="delete them: nothing reads them",
            fix=partial(_delete_leftovers, run),
        )


def _delete_leftovers(run: RunDir) -> None:
    with run.lock():
        for folder in run.checkpoints.glob(".step-*"):
            shutil.rmtree(folder)


def _set_aside(run: RunDir, folder: Path, quick: bool) -> None:
    with run.lock():
        if faults(folder, quick=quick):  # another trainer may have written it anew
            set_aside(run, folder)
