"""Alarms on Prefect's pages and in the terminal: a real server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reopold.run_dir import RunDir
from tasks.alarms import artifact_key

SCRIPT = """
import json, sys
from pathlib import Path
from tasks.home import configure_environment
configure_environment()
from prefect import flow
from prefect.artifacts import Artifact
from reopold.run_dir import RunDir
from tasks import progress
from tasks.alarms import AlarmWatcher

shown = []
class Screen:
    def show(self, progress):
        shown.append([progress.name, progress.stage, progress.state])
progress.use_display(Screen())
run = RunDir(Path(sys.argv[1]))
alarm = {"alarm": "truncation", "policy": "pause", "value": 0.4, "limit": 0.25}

@flow
def watch():
    run.event("alarm", 2, "of an earlier start", **alarm)
    watcher = AlarmWatcher(run)
    watcher.poll()
    run.event("checkpoint", 3, "no alarm")
    watcher.poll()
    before = Artifact.get(key="alarms-opd-s1-v2")
    run.event("alarm", 5, "0.4 | above 0.25", **alarm)
    watcher.poll()
    watcher.poll()
    first = Artifact.get(key="alarms-opd-s1-v2").data
    run.event("rollback", 5, "truncation: back to step 4", alarm="truncation", to_step=4, set={})
    run.event("damaged_checkpoint", 4, "step-000004 is damaged")
    watcher.poll()
    return before, first, Artifact.get(key="alarms-opd-s1-v2").data

before, first, last = watch()
print(json.dumps({"before": before, "first": first, "last": last, "shown": shown}))
"""


@pytest.mark.slow
@pytest.mark.integration
def test_each_alarm_is_told_once_and_listed(
    tmp_path: Path, fresh_home: Path, child_env: dict[str, str]
) -> None:
    run = RunDir(tmp_path / "OPD_s1.v2")
    run.path.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run.path)],
        env=child_env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["before"] is None
    head = "| step | event | policy | what |\n|---|---|---|---|\n"
    earlier = "| 2 | alarm | pause | truncation: of an earlier start |\n"
    alarm = "| 5 | alarm | pause | truncation: 0.4 / above 0.25 |"
    assert told["first"] == head + earlier + alarm
    assert told["last"] == told["first"] + (
        "\n| 5 | rollback |  | truncation: back to step 4 |"
        "\n| 4 | damaged checkpoint |  | step-000004 is damaged |"
    )
    assert told["shown"] == [
        ["OPD_s1.v2", "step 5: truncation: 0.4 | above 0.25", "pause"],
        ["OPD_s1.v2", "step 5: truncation: back to step 4", "rollback"],
        ["OPD_s1.v2", "step 4: step-000004 is damaged", "damaged_checkpoint"],
    ]


@pytest.mark.parametrize(
    ("name", "key"),
    [("reopold-s1", "alarms-reopold-s1"), ("dr_grpo-s2", "alarms-dr-grpo-s2"), ("A.", "alarms-a")],
)
def test_a_key_that_prefect_takes(name: str, key: str) -> None:
    assert artifact_key(RunDir(Path(name))) == key
