"""Whole runs with vLLM: sampled and scored by it, killed, and cheated on."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reopold.config import EngineConfig, RunConfig, TeacherConfig, TrainConfig
from reopold.data.tokenizers import load_tokenizer
from reopold.engines import handover
from reopold.engines.base import EngineFailure
from reopold.engines.export import export, serving_weights
from reopold.engines.handover import hand_over
from reopold.engines.hf import HFEngine, load_model
from reopold.engines.vllm import VLLMEngine
from reopold.rollouts import Needs, SamplingParams
from reopold.run_dir import RunDir
from reopold.scoring import output_head
from reopold.teachers.local import LocalTeacher
from reopold.teachers.server import ServerTeacher
from reopold.teachers.vllm import VLLMTeacher

MakeRun = Callable[..., RunDir]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not here: make test-vllm"
    ),
]


@pytest.fixture
def make_run(recipe: Callable[..., RunConfig], run_dir: Callable[[RunConfig], RunDir]) -> MakeRun:
    def make(method: str, steps: int, **sections: Any) -> RunDir:
        train = TrainConfig(steps=steps, checkpoint_every=steps, micro_batch=4, keep_rollouts=2)
        return run_dir(recipe(method, train=train, **sections))

    return make


def processes_of(owner: int) -> list[int]:
    """Processes that carry the owner's mark in their environment, the owner left out."""
    mark = f"REOPOLD_OWNER_PID={owner}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != owner]


def wait_until(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds:.0f} s"
        time.sleep(0.2)


def start_trainer(run: Any) -> subprocess.Popen[bytes]:
    with open(run.log_file, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "reopold.train", str(run.path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


@pytest.mark.parametrize("kind", ["vllm", "server"])
def test_a_run_sampled_and_scored_by_vllm(make_run: MakeRun, kind: str) -> None:
    run = make_run(
        "reopold",
        engine=EngineConfig(kind=kind),
        teacher=TeacherConfig(kind=kind),
        steps=3,
    )
    trainer = start_trainer(run)
    assert trainer.wait(300) == 0, run.log_file.read_text()
    metrics = run.metrics()
    assert [line["step"] for line in metrics] == [0, 1, 2]
    assert all(line["rollout/sampler_gap_max"] < 1e-4 for line in metrics)
    assert all(line["rollout/probe_gap"] < 1e-4 for line in metrics)
    assert len({line["train/nll"] for line in metrics}) == 3
    wait_until(lambda: not processes_of(trainer.pid), 20, "every engine process ends")


def test_a_killed_trainer_leaves_no_engine_behind(make_run: MakeRun) -> None:
    """SIGKILL: no handler runs. Servers, their engine cores, and the child of the teacher."""
    run = make_run(
        "opd",
        engine=EngineConfig(kind="server"),
        teacher=TeacherConfig(kind="vllm"),
        steps=10_000,
    )
    trainer = start_trainer(run)
    wait_until(lambda: run.metrics_file.exists() or trainer.poll() is not None, 200, "a step")
    assert trainer.poll() is None, run.log_file.read_text()
    assert len(processes_of(trainer.pid)) >= 3
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    wait_until(lambda: not processes_of(trainer.pid), 20, "every engine process ends")


def test_a_dead_replica_is_survived_and_two_are_not(make_run: MakeRun) -> None:
    run = make_run(
        "opd",
        engine=EngineConfig(kind="server", replicas=2, retries=2),
        steps=10_000,
    )
    trainer = start_trainer(run)
    wait_until(lambda: run.metrics_file.exists() or trainer.poll() is not None, 200, "a step")
    groups = {os.getpgid(pid) for pid in processes_of(trainer.pid)} - {os.getpgid(trainer.pid)}
    assert len(groups) == 2, run.log_file.read_text()
    first, second = groups
    os.killpg(first, signal.SIGKILL)
    steps = len(run.metrics())
    wait_until(lambda: len(run.metrics()) > steps + 3, 60, "more steps on one replica")
    assert trainer.poll() is None
    os.killpg(second, signal.SIGKILL)
    assert trainer.wait(60) == 1
    failure = run.events()[-1]
    assert failure["kind"] == "failure" and "server" in failure["message"]
    assert json.loads(run.manifest_file.read_text())["status"] == "failed"


@pytest.fixture(scope="module")
def rollouts(suite: Path) -> list[Any]:
    engine = HFEngine.load(suite / "student-init")
    prompts = [engine.tokenizer.encode(text) for text in ("3+4*2=", "9-1*5+2-7*3=", "1*1=")]
    return engine.generate(prompts, SamplingParams(20), seeds=[1, 2, 3], n=4)


@pytest.mark.parametrize("kind", ["vllm", "server"])
def test_a_served_teacher_scores_as_a_local_one(
    suite: Path, tmp_path: Path, rollouts: list[Any], kind: str
) -> None:
    path = str(suite / "teacher-init")
    tokenizer = load_tokenizer(path)
    local = LocalTeacher(load_model(path, dtype="float32", device="cpu"), len(tokenizer), 4)
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), "dtype": "float32", "top_k": 5}
    served: VLLMTeacher | ServerTeacher
    if kind == "vllm":
        served = VLLMTeacher(
            path, eos=tokenizer.eos_token_id, memory_fraction=0.4, max_length=0, **settings
        )
    else:
        config = TeacherConfig(kind="server", replicas=2)
        served = ServerTeacher.connect(
            config, path, "teacher", tmp_path, should_stop=lambda: False, **settings
        )
    try:
        needs = Needs(teacher=True, top_k=5)
        ours, theirs = local.score(rollouts, needs), served.score(rollouts, needs)
    finally:
        served.close()
    assert (ours.logprobs_N - theirs.logprobs_N).abs().max() < 1e-4
    mine, other = ours.distribution, theirs.distribution
    assert mine is not None and other is not None
    assert (mine.logprobs_NK - other.logprobs_NK).abs().max() < 1e-4  # type: ignore[union-attr]
    assert theirs.entropy_N is None


def test_a_head_that_an_update_cannot_reach_is_refused(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's reload keeps the old head of a tied model, and says so in a log line only."""
    path = str(suite / "student-init")
    model = load_model(path, dtype="float32", device="cpu")
    tokenizer = load_tokenizer(path)
    size, eos = len(tokenizer), tokenizer.eos_token_id
    head = output_head(model, size)
    tied = VLLMEngine(path, eos=eos, vocab_size=size)
    with pytest.raises(EngineFailure, match="ties its head"):
        hand_over(tied, model, head, 1, torch.float32)
    tied.close()
    folder = export(
        model, tokenizer, tmp_path / "w", version=0, vocab_size=size, dtype=torch.float32
    )
    engine = VLLMEngine(folder, eos=eos, vocab_size=size)
    hand_over(engine, model, head, 1, torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)

    def without_head(*arguments: Any) -> Any:
        return (pair for pair in serving_weights(*arguments) if "lm_head" not in pair[0])

    monkeypatch.setattr("reopold.engines.vllm.serving_weights", without_head)
    with pytest.raises(EngineFailure, match="output head is not the one of version 2"):
        hand_over(engine, model, head, 2, torch.float32)
    monkeypatch.undo()
    hand_over(engine, model, head, 3, torch.float32)
    monkeypatch.setattr(handover, "probe_gap", lambda *_: 0.5)
    with pytest.raises(EngineFailure, match="fixed prompt"):
        hand_over(engine, model, head, 4, torch.float32)
    engine.close()
