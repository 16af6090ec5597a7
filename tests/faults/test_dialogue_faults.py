"""A run on dialogues that is stopped or killed in the middle of one ends with the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from reopold.config import ModelConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.run_dir import RunDir
from reopold.study_config import MicroConfig
from tests.faults.compare import assert_same
from tests.faults.conftest import Straight
from tests.faults.zygote import Zygote

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def led(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """An untrained student says the token that opens a call often enough: its calls are malformed,
    it is told so, and goes on."""
    from reopold.micro.build import build_suite

    out = tmp_path_factory.mktemp("tools") / "micro"
    sizes: dict[str, Any] = {"train_problems": 60, "test_problems": 6, "validation_problems": 6}
    sizes |= {"teacher_width": 32, "teacher_layers": 1, "student_width": 16, "student_layers": 1}
    build_suite(out, MicroConfig(families=["tools"], **sizes))
    return RunConfig(
        name="reopold-s3",
        method="reopold",
        family="tools",
        seed=3,
        model=ModelConfig(student=str(out / "student-init"), teacher=str(out / "teacher-init")),
        data={"train": str(out / "micro_tools" / "train.jsonl")},  # type: ignore[arg-type]
        sampling=SamplingConfig(prompts_per_step=3, rollouts_per_prompt=3, max_new_tokens=250),
        train=TrainConfig(
            steps=4, checkpoint_every=2, save_every=1, micro_batch=4, updates_per_step=3
        ),
    )


def fault(name: str, call: int, number: int) -> dict[str, Any]:
    return {"at": "function", "name": name, "call": call, "delay": 0.0, "signal": number}


def test_stops_and_kills_between_two_turns(
    led: RunConfig, zygote: Zygote, straight: Straight, tmp_path: Path
) -> None:
    whole = straight(led)
    assert max(line["rollout/turns"] for line in whole.metrics()) > 1.5
    run, log = RunDir(tmp_path / "run").create(led), tmp_path / "log"
    stopped = fault("HFEngine._sample", 2, signal.SIGTERM)  # turn 2 of the first step
    assert zygote.run("reopold.train", str(run.path), log=log, fault=stopped) == 3, log.read_text()
    killed = fault("_World.act", 11, signal.SIGKILL)  # an environment, in its thread
    assert zygote.run("reopold.train", str(run.path), log=log, fault=killed) == -signal.SIGKILL
    killed = fault("HFEngine._sample", 5, signal.SIGKILL)
    assert zygote.run("reopold.train", str(run.path), log=log, fault=killed) == -signal.SIGKILL
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(whole, run)
