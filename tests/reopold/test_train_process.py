"""The trainer process: idempotent, resumable to the same bits, clear about bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from reopold.config import ModelConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.run_dir import RunDir
from tests.faults.compare import assert_same
from tests.faults.zygote import Zygote

pytestmark = pytest.mark.integration

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]


@dataclass(frozen=True)
class Ended:
    returncode: int
    output: str


Train = Callable[..., Ended]


@pytest.fixture
def train(zygote: Zygote, tmp_path: Path) -> Train:
    """Runs a trainer process, forked from one that has nothing left to import."""

    def run_trainer(run: RunDir, *arguments: str) -> Ended:
        log = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}"
        code = zygote.run("reopold.train", str(run.path), *arguments, log=log)
        return Ended(code, log.read_text())

    return run_trainer


def command(run: RunDir, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user or a launcher starts it."""
    line = [sys.executable, "-m", "reopold.train", str(run.path), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def straight(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was never interrupted."""
    run = RunDir(tmp_path_factory.mktemp("straight") / "run").create(module_recipe(suite))
    completed = command(run)
    assert completed.returncode == 0, completed.stderr
    return run


def module_recipe(suite: Path, **sections: Any) -> RunConfig:
    return RunConfig(
        **{
            "name": "reopold-s3",
            "seed": 3,
            "model": ModelConfig(
                student=str(suite / "student-init"), teacher=str(suite / "teacher-init")
            ),
            "data": {"train": str(suite / "micro_maths" / "train.jsonl")},
            "sampling": SamplingConfig(
                prompts_per_step=3, rollouts_per_prompt=2, max_new_tokens=12
            ),
            "train": TrainConfig(steps=6, checkpoint_every=2, micro_batch=4, keep_rollouts=2),
            **sections,
        }
    )


def test_a_whole_run_leaves_what_the_contract_says(straight: RunDir) -> None:
    assert straight.complete_checkpoints() == [2, 3, 4, 6]  # 3 is the phase switch
    assert [line["step"] for line in straight.metrics()] == list(range(6))
    assert [line["phase"] for line in straight.metrics()] == ["exploration"] * 3 + [
        "refinement"
    ] * 3
    kinds = [event["kind"] for event in straight.events()]
    assert kinds[:2] == ["start", "phase"] and kinds[-1] == "finish"
    manifest = straight.manifest()
    assert manifest["status"] == "finished" and manifest["step"] == manifest["steps"] == 6
    assert manifest["config_digest"] == straight.digest()
    assert manifest["parents"].keys() == {"student", "teacher", "data"}
    assert manifest["versions"]["torch"] == torch.__version__
    rollouts = (straight.path / "rollouts" / "step-000006.jsonl").read_text().splitlines()
    assert len(rollouts) == 2 and json.loads(rollouts[0])["tokens"][0].keys() >= {"kept", "entropy"}


def test_a_checkpoint_is_an_ordinary_hugging_face_folder(straight: RunDir) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = straight.checkpoint(6)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    assert not list(straight.checkpoints.glob(".*")), "temporary folders were left behind"


def test_the_same_recipe_gives_the_same_bits(
    straight: RunDir, train: Train, suite: Path, run_dir: MakeRun
) -> None:
    again = run_dir(module_recipe(suite))
    assert train(again).returncode == 0
    assert_same(straight, again)


def test_starting_a_finished_run_changes_nothing(straight: RunDir, train: Train) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.checkpoints.rglob("*")}
    completed = train(straight)
    assert completed.returncode == 0 and "done already" in completed.output
    assert {p: p.stat().st_mtime_ns for p in straight.checkpoints.rglob("*")} == before


def test_stages_give_the_same_bits_as_one_go(
    straight: RunDir, train: Train, suite: Path, run_dir: MakeRun
) -> None:
    run = run_dir(module_recipe(suite))
    for until in ("3", "3", "4", "6"):
        assert train(run, "--until", until).returncode == 0
    assert_same(straight, run)


def test_a_trainer_ends_with_the_process_that_launched_it(suite: Path, run_dir: MakeRun) -> None:
    config = module_recipe(suite, train=TrainConfig(steps=100_000, checkpoint_every=100_000))
    run = run_dir(config)
    launcher = (
        "import subprocess, sys, os, time\n"
        "os.environ['REOPOLD_PARENT_PID'] = str(os.getpid())\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'reopold.train', {str(run.path)!r}])\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while len(run.metrics()) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    gone = not Path(f"/proc/{child}").exists()
    if not gone:
        os.kill(child, signal.SIGKILL)
    assert gone
    assert run.resume_points(), "a checkpoint is saved on the way out"


FAULTS = ["config", "student", "teacher", "data", "tokenizer", "parent", "changed data", "weights"]


@pytest.mark.parametrize("fault", [*FAULTS, "until"])
def test_bad_input_is_refused_before_any_work(
    fault: str, train: Train, suite: Path, tmp_path: Path, run_dir: MakeRun
) -> None:
    copies = {role: tmp_path / role for role in ("student", "teacher")}
    for role, copy in copies.items():
        shutil.copytree(suite / f"{role}-init", copy)
    data = tmp_path / "train.jsonl"
    shutil.copy(suite / "micro_maths" / "train.jsonl", data)
    config = module_recipe(
        suite,
        model=ModelConfig(student=str(copies["student"]), teacher=str(copies["teacher"])),
        data={"train": str(data)},
        train=TrainConfig(steps=2, checkpoint_every=1),
    )
    run = run_dir(config)
    if fault == "config":
        run.config_file.write_text('{"name": "x"}')
        message = "'model' is missing"
    elif fault in copies:
        shutil.rmtree(copies[fault])
        message = f"no {fault} checkpoint at"
    elif fault == "data":
        data.unlink()
        message = "no prompts at"
    elif fault == "tokenizer":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(copies["teacher"])
        tokenizer.add_tokens(["x"])
        tokenizer.save_pretrained(copies["teacher"])
        message = "different tokenizers"
    elif fault == "parent":
        assert train(run, "--until", "1").returncode == 0
        shutil.copy(suite / "student-init" / "config.json", copies["teacher"] / "config.json")
        message = "/teacher has changed since"
    elif fault == "changed data":
        assert train(run, "--until", "1").returncode == 0
        data.write_text("\n".join(sorted(data.read_text().splitlines())))
        message = "data "
    elif fault == "weights":
        (copies["student"] / "model.safetensors").write_bytes(b"torn")
        message = "cannot be loaded"
    else:
        message = "--until takes 1 to 2"
    completed = train(run, *(("--until", "0") if fault == "until" else ()))
    assert completed.returncode == 2, completed.output
    assert message in completed.output
    assert "Traceback" not in completed.output
