"""Kill a run anywhere, start it again, and it ends with the bits of one that was left alone.

`make faults` kills 200 times and prints where; KILLS and SEED choose how often and where.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reopold.run_dir import RunDir
from tests.faults.compare import assert_same
from tests.faults.conftest import MakeRecipe, Straight
from tests.faults.zygote import Zygote

pytestmark = pytest.mark.integration

KILLS, SEED = int(os.environ.get("KILLS", "25")), int(os.environ.get("SEED", "0"))
#: Of the boundaries of system calls in a checkpoint's writing; 1 tries each (8 minutes).
STRIDE = int(os.environ.get("STRIDE", "4"))
#: Kills of one run before it may finish.
KILLS_A_RUN = 5
#: Where to kill: the function whose call is waited for, and the seconds after which it is over.
FUNCTIONS = {
    "sampling": ("HFEngine._sample", 0.012),
    "scoring": ("score", 0.004),
    "teacher": ("LocalTeacher.score", 0.002),
    "update": ("Updater.backward", 0.004),
    "optimiser": ("Updater._one_update", 0.006),
    "log": ("append_line", 0.0002),
    "snapshot": ("Trainer._save", 0.003),
    "checkpoint": ("write_checkpoint", 0.012),
    "retention": ("prune", 0.001),
    "resume": ("resume_point", 0.002),
    "cut back": ("RunDir.cut_back", 0.002),
    "restore": ("Trainer._restore", 0.003),
}
#: Those that happen once a start, not once a step.
ONCE = ("resume", "cut back", "restore")
WHERE = [*FUNCTIONS, "system call", "any time", "system call", "stop"]


@pytest.fixture(scope="module")
def boundaries(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path_factory: pytest.TempPathFactory
) -> int:
    """Boundaries of system calls in the writing of one checkpoint."""
    folder = tmp_path_factory.mktemp("count")
    run, file = RunDir(folder / "run").create(small()), folder / "count"
    fault = {"at": "count", "checkpoint": 2, "file": str(file)}
    assert zygote.run("reopold.train", str(run.path), log=folder / "log", fault=fault) == 0
    assert_same(straight(small()), run)
    return int(file.read_text())


def planned(where: str, chance: random.Random, boundaries: int) -> dict[str, Any]:
    if where == "any time":
        return {"at": "time", "delay": chance.uniform(0.01, 0.5)}
    if where == "system call":
        checkpoint, boundary = chance.randint(1, 4), chance.randint(1, boundaries)
        return {"at": "write", "checkpoint": checkpoint, "boundary": boundary}
    if where == "stop":
        number = int(signal.SIGTERM)
        name = chance.choice(["HFEngine._sample", "score", "Updater.backward"])
        return {"at": "function", "name": name, "call": 2, "delay": 0.0, "signal": number}
    name, seconds = FUNCTIONS[where]
    call = 1 if where in ONCE else chance.randint(1, 4)
    return {
        "at": "function", "name": name, "call": call, "delay": chance.uniform(0.0, seconds)
    }  # fmt: skip


def faults_forever(boundaries: int) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    while True:
        chance = random.Random(SEED * 100_000 + number)
        where = WHERE[number % len(WHERE)]
        yield where, planned(where, chance, boundaries)
        number += 1


@pytest.mark.timeout(900)
def test_killed_anywhere_a_run_ends_with_the_same_bits(
    zygote: Zygote, small: MakeRecipe, straight: Straight, boundaries: int, tmp_path: Path
) -> None:
    config = small()
    reference, plan = straight(config), faults_forever(boundaries)
    hit: Counter[str] = Counter()
    runs = 0
    while sum(hit.values()) < KILLS:
        run, runs = RunDir(tmp_path / f"run-{runs}").create(config), runs + 1
        log, killed = tmp_path / f"log-{runs}", 0
        while killed < KILLS_A_RUN:
            where, fault = next(plan)
            code = zygote.run("reopold.train", str(run.path), log=log, fault=fault)
            assert code in (0, 3, -signal.SIGKILL), log.read_text()
            if code == 0:
                break  # it was faster than the fault
            killed += 1
            hit[where] += 1
        assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
        assert_same(reference, run)
        assert not list(run.checkpoints.glob("damaged-*")), "a kill leaves a checkpoint or none"
    places = ", ".join(f"{where} {count}" for where, count in sorted(hit.items()))
    print(f"\n{sum(hit.values())} kills of {runs} runs, all bit-identical; SEED={SEED}: {places}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_system_call_of_a_checkpoint(
    zygote: Zygote, small: MakeRecipe, straight: Straight, boundaries: int, tmp_path: Path
) -> None:
    """One kill at every STRIDE-th boundary, before or after a call; three steps will do.

    Their number depends on the run (names that are there already, sizes): past the last one of
    this run nothing is killed any more.
    """
    config, tried = small(train={"steps": 3}), 0
    for boundary in range(1, boundaries + 1, STRIDE):
        run = RunDir(tmp_path / f"run-{boundary}").create(config)
        fault = {"at": "write", "checkpoint": 2, "boundary": boundary}
        log = tmp_path / "log"
        code = zygote.run("reopold.train", str(run.path), log=log, fault=fault)
        if code == 0 and boundary > 0.9 * boundaries:
            break
        assert code == -signal.SIGKILL, log.read_text()
        assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
        assert_same(straight(config), run)
        tried += 1
    print(f"\n{tried} of about {boundaries} boundaries of system calls, all bit-identical")


def test_killed_between_the_last_checkpoint_and_the_word_of_it(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """Nothing is left to train, and something to be settled."""
    config, log = small(), tmp_path / "log"
    run = RunDir(tmp_path / "run").create(config)
    fault = {"at": "function", "name": "prune", "call": 6, "delay": 0.0}
    assert zygote.run("reopold.train", str(run.path), log=log, fault=fault) == -signal.SIGKILL
    assert run.complete_checkpoints()[-1] == 6 and run.manifest()["status"] == "running"
    for _ in range(2):
        assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
        assert_same(straight(config), run)
    assert run.manifest()["status"] == "finished"
    assert [event["kind"] for event in run.events()].count("finish") == 1
