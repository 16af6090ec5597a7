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
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reopold.config import ModelConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.run_dir import RunDir

pytestmark = pytest.mark.integration

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]

#: Metric names and fields that measure the machine, not the run.
MEASURED = ("perf/", "time")


def train(run: RunDir, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reopold.train", str(run.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def results(run: RunDir) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Weights, trainer state and metrics of a finished run, without what measures the machine."""
    last = run.checkpoint(run.complete_checkpoints()[-1])
    metrics = [
        {key: value for key, value in line.items() if not key.startswith(MEASURED)}
        for line in run.metrics()
    ]
    state = torch.load(last / "trainer" / "state.pt", weights_only=True)
    return load_file(last / "model.safetensors"), state, metrics


def assert_same(run: RunDir, other: RunDir) -> None:
    (weights, state, metrics), (others, other_state, other_metrics) = results(run), results(other)
    assert metrics == other_metrics
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    moments, other_moments = (s["optimizer"]["state"] for s in (state, other_state))
    for index, moment in moments.items():
        for key, value in moment.items():
            assert torch.equal(value, other_moments[index][key]), (index, key)
    assert run.checkpoint(6).joinpath("COMPLETE").read_text() == (
        other.checkpoint(6).joinpath("COMPLETE").read_text()
    )


@pytest.fixture(scope="module")
def straight(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was never interrupted."""
    run = RunDir(tmp_path_factory.mktemp("straight") / "run").create(module_recipe(suite))
    completed = train(run)
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
            "data": {"train": str(suite / "train.jsonl")},
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
    straight: RunDir, suite: Path, run_dir: MakeRun
) -> None:
    again = run_dir(module_recipe(suite))
    assert train(again).returncode == 0
    assert_same(straight, again)


def test_starting_a_finished_run_changes_nothing(straight: RunDir) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.checkpoints.rglob("*")}
    completed = train(straight)
    assert completed.returncode == 0 and "done already" in completed.stdout
    assert {p: p.stat().st_mtime_ns for p in straight.checkpoints.rglob("*")} == before


def test_stages_give_the_same_bits_as_one_go(
    straight: RunDir, suite: Path, run_dir: MakeRun
) -> None:
    run = run_dir(module_recipe(suite))
    for until in ("3", "3", "4", "6"):
        assert train(run, "--until", until).returncode == 0
    assert_same(straight, run)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_stopped_in_mid_step_goes_on_to_the_same_bits(
    stop: signal.Signals, straight: RunDir, suite: Path, run_dir: MakeRun
) -> None:
    run = run_dir(module_recipe(suite))
    process = subprocess.Popen(
        [sys.executable, "-m", "reopold.train", str(run.path)], stdout=subprocess.DEVNULL
    )
    while len(run.metrics()) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(stop)
    code = process.wait(timeout=60)
    assert code in ((3, 0) if stop == signal.SIGTERM else (-signal.SIGKILL, 0))
    assert train(run).returncode == 0
    assert_same(straight, run)
    assert run.complete_checkpoints() == [2, 3, 4, 6]


def test_a_half_written_checkpoint_is_passed_over(
    straight: RunDir, tmp_path: Path, suite: Path
) -> None:
    shutil.copytree(straight.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    shutil.rmtree(run.checkpoint(6))
    (run.checkpoint(4) / "COMPLETE").unlink()
    (run.checkpoint(4) / "model.safetensors").write_bytes(b"torn")
    # config.json holds paths relative to the run directory: claim the copy for the same recipe
    run.config_file.unlink()
    run.config_file.write_text(
        RunDir(tmp_path / "fresh").create(module_recipe(suite)).config_file.read_text()
    )
    assert train(run).returncode == 0
    assert_same(straight, run)
    assert "resume" in [event["kind"] for event in run.events()]


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
    assert run.complete_checkpoints(), "a checkpoint is saved on the way out"


FAULTS = ["config", "student", "teacher", "data", "tokenizer", "parent", "changed data", "weights"]


@pytest.mark.parametrize("fault", [*FAULTS, "until"])
def test_bad_input_is_refused_before_any_work(
    fault: str, suite: Path, tmp_path: Path, run_dir: MakeRun
) -> None:
    copies = {role: tmp_path / role for role in ("student", "teacher")}
    for role, copy in copies.items():
        shutil.copytree(suite / f"{role}-init", copy)
    data = tmp_path / "train.jsonl"
    shutil.copy(suite / "train.jsonl", data)
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
    assert completed.returncode == 2, completed.stderr
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr
