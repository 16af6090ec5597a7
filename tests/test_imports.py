"""Flows and the command line import without torch and vllm; help answers at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
import {module}
"""

FLOWS = sorted(f"flows.{path.stem}" for path in (REPO / "flows").glob("[a-z]*.py"))
TASKS = sorted(f"tasks.{path.stem}" for path in (REPO / "tasks").glob("[a-z]*.py"))
TORCH_FREE = [
    "reopold.config",
    "reopold.health",
    "reopold.run_dir",
    "reopold.studies",
    "reopold.rollouts",
]


def import_with(module: str, *blocked: str) -> None:
    code = BLOCKED.format(blocked=set(blocked), module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [*FLOWS, *TASKS])
def test_flows_and_tasks_import_without_torch(module: str) -> None:
    import_with(module, "torch", "vllm")


@pytest.mark.parametrize("module", TORCH_FREE)
def test_configs_and_run_directories_need_neither_torch_nor_servers(module: str) -> None:
    import_with(module, "torch", "vllm", "prefect", "mlflow", "transformers")


COMMANDS = [
    [],
    ["quickstart"],
    ["distill"],
    ["evaluate"],
    ["compare"],
    ["report"],
    ["report", "verify"],
    ["study"],
    ["dashboard"],
    ["doctor"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "reopold")
def test_help_answers_at_once_and_shows_an_example(command: list[str]) -> None:
    program = Path(sys.executable).with_name("reopold")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [str(program), *command, "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.7
    assert f"reopold {' '.join(command) or 'quickstart'}" in done.stdout
    if command:
        assert "Example:" in done.stdout
