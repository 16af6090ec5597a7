"""A long run takes no more memory, descriptors, threads or processes at its end than before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from reopold.run_dir import RunDir
from tests.faults.conftest import MakeRecipe
from tests.faults.zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = int(os.environ.get("STEPS", "2000"))
#: Step from which on nothing may grow: allocators and caches have filled by then.
WARM = 300
#: MiB that the resident memory may move all the same.
SLACK_MIB = 12.0


def usage(pid: int) -> tuple[float, int, int, int]:
    """Resident MiB, open descriptors, threads and child processes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, handles, len(tasks), children


def test_nothing_grows(zygote: Zygote, small: MakeRecipe, tmp_path: Path) -> None:
    """Sampled through the run: medians of the first and the last fifth after the warm-up."""
    config = small(train={"steps": STEPS, "checkpoint_every": 500, "save_every": 20})
    run = RunDir(tmp_path / "run").create(config)
    child = zygote.start("reopold.train", str(run.path), log=tmp_path / "log")
    seen: list[tuple[float, int, int, int]] = []
    while child.running():
        time.sleep(0.2)
        if run.metrics_file.exists() and run.metrics_file.read_bytes().count(b"\n") > WARM:
            try:
                seen.append(usage(child.pid))
            except (OSError, IndexError, ValueError):
                break  # it has just ended
    assert child.wait() == 0, child.output()
    assert len(run.metrics()) == STEPS and len(seen) > 20
    fifth = len(seen) // 5
    first, last = (
        [sorted(column)[fifth // 2] for column in zip(*part, strict=True)]
        for part in (seen[:fifth], seen[-fifth:])
    )
    names = ("resident MiB", "descriptors", "threads", "children")
    shown = zip(names, first, last, strict=True)
    print("\n" + "; ".join(f"{name} {a:.5g} -> {b:.5g}" for name, a, b in shown))
    print("resident MiB:", *(f"{row[0]:.1f}" for row in seen[:: max(1, len(seen) // 16)]))
    assert last[0] < first[0] + SLACK_MIB
    assert last[1:] == first[1:]
