"""What a served model cannot do is refused before any work, with the way out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from reopold.config import ConfigError, EngineConfig, RunConfig, TeacherConfig
from reopold.engines import servers

SERVED = {"kind": "vllm"}


def run(method: str = "opd", **sections: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "run",
        "method": method,
        "model": {"student": "./s", "teacher": "./t"},
        "data": {"train": "./p.jsonl"},
    }
    return RunConfig.model_validate({**fields, **sections})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "hf", "urls": ["http://a"]}, "for kind 'server', not 'hf'"),
        ({"kind": "vllm", "replicas": 2}, "for kind 'server', not 'vllm'"),
        ({"kind": "vllm", "gpus": [0]}, "for kind 'server', not 'vllm'"),
        ({"kind": "server", "replicas": 2, "gpus": [0]}, "one GPU for each of 2 replicas"),
        ({"gap_warn": 0.2, "gap_stop": 0.1}, "gap_stop must not be below gap_warn"),
        ({"kind": "sglang"}, "'hf', 'vllm' or 'server'"),
        ({"memory_fraction": 1.5}, "less than or equal to 0.95"),
    ],
)
def test_faulty_engines(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        (
            "opd",
            {"engine": SERVED, "objective": {"logprob_temperature": 0.5}},
            "set objective.logprob_temperature to one of them",
        ),
        (
            "opd",
            {"teacher": SERVED, "objective": {"logprob_temperature": 0.5}},
            "scores prompts at temperature 1",
        ),
        ("gkd", {"teacher": SERVED}, "teacher's whole distribution"),
        ("entropy_opd", {"teacher": SERVED}, "teacher's entropy"),
        ("gkd", {"objective": {"sampler_weights": "token"}}, "gkd has none"),
        (
            "gkd",
            {
                "teacher": {"kind": "server", "interface": "echo"},
                "objective": {"support": "top_k"},
            },
            "set teacher.interface to 'prompt_logprobs'",
        ),
        (
            "trust_region",
            {"teacher": {"kind": "server", "interface": "token_ids"}},
            "compares top_k ids",
        ),
        ("gkd", {"teachers": [{"sources": ["a"], "model": "./u"}]}, "takes one teacher"),
        (
            "opd",
            {"teachers": [{"sources": ["a"], "model": "./u"}, {"sources": ["a"], "model": "./v"}]},
            "each source may be listed with one",
        ),
        ("opd", {"teachers": [{"sources": [], "model": "./u"}]}, "at least 1 item"),
    ],
)
def test_faulty_runs(method: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run(method, **sections)


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("opd", {"engine": SERVED, "teacher": SERVED}),
        (
            "opd",
            {
                "engine": SERVED,
                "sampling": {"temperature": 0.5},
                "objective": {"logprob_temperature": 0.5},
            },
        ),
        ("gkd", {"teacher": SERVED, "objective": {"support": "top_k"}}),
        ("trust_region", {"teacher": SERVED}),
        ("grpo", {"engine": SERVED, "teacher": SERVED}),
        ("opd", {"teachers": [{"sources": ["a", "b"], "model": "./u"}]}),
    ],
)
def test_what_can_be_served_is_accepted(method: str, sections: dict[str, Any]) -> None:
    run(method, **sections)


def test_defaults_are_the_embedded_ones() -> None:
    assert run().engine.kind == run().teacher.kind == "hf"
    two = EngineConfig(kind="server", replicas=2, gpus=[0, 1])
    assert two.gpus == [0, 1] and TeacherConfig().interface == "prompt_logprobs"


def test_paths_of_further_teachers_are_moved_too() -> None:
    moved = run(teachers=[{"sources": ["a"], "model": "./u"}]).with_paths(lambda path: path + "!")
    assert moved.teachers[0].model == "./u!"


def test_gpus_are_counted_within_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = {"kind": "server", "replicas": 2, "gpus": [1, 2]}
    teacher = {"kind": "server", "replicas": 2, "gpus": [3, 3]}
    placed = run(engine=engine, teacher=teacher)
    assert (placed.gpus, placed.devices) == (4, 4)
    without = run("grpo", engine=engine, teacher=teacher, model={"student": "./s"})
    assert without.gpus == 3  # nothing runs where the teacher would
    elsewhere = {"kind": "server", "urls": ["http://a:8000", "http://b:8000"]}
    assert (run(teacher=elsewhere).gpus, run(teacher=elsewhere).devices) == (1, 3)
    assert run(engine={"kind": "server"}).devices == 1  # beside the trainer

    # Slots gave the run GPUs 4 and 6 of the machine.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    both = EngineConfig(kind="server", replicas=2, gpus=[1, 0])
    named = [servers._environment(both, i)["CUDA_VISIBLE_DEVICES"] for i in (0, 1)]
    assert named == ["6", "4"]
    beside = servers._environment(EngineConfig(kind="server", replicas=2), 1)
    assert beside["CUDA_VISIBLE_DEVICES"] == "4"
    with pytest.raises(ConfigError, match="placed on GPU 2 and the run has 2"):
        servers._environment(EngineConfig(kind="server", gpus=[2]), 0)
