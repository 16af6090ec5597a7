"""Estimates: memory against what autograd keeps, the rest by hand and by what must follow."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from reopold import logprobs
from reopold.config import ConfigError, RunConfig, TrainConfig
from reopold.estimate import (
    CHUNK_LOGITS,
    GIB,
    GPUS,
    Assumptions,
    Estimate,
    activation_bytes,
    estimate,
    find_gpu,
    trainer_memory,
)
from reopold.precision import layer_passes, prepare
from reopold.shapes import Shape, shape_of

STUDENT, TEACHER = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Skywork/Skywork-OR1-7B"
H100 = GPUS["h100"]


def run(method: str = "reopold", **sections: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "run",
        "method": method,
        "model": {"student": STUDENT, "teacher": TEACHER, "dtype": "bfloat16"},
        "data": {"train": "./p.jsonl"},
        "sampling": {"prompts_per_step": 128, "rollouts_per_prompt": 8, "max_new_tokens": 8192},
        "engine": {"kind": "server", "replicas": 2, "gpus": [1, 2], "memory_fraction": 0.85},
        "teacher": {"kind": "server", "gpus": [3], "memory_fraction": 0.85},
        "train": {
            "steps": 300,
            "checkpoint_every": 50,
            "micro_batch": 1,
            "precision": "bfloat16",
            "recompute_layers": True,
        },
        "evaluation": {"engine": "vllm", "max_new_tokens": 32768},
    }
    for name, section in sections.items():
        fields[name] = {**fields.get(name, {}), **section}
    return RunConfig.model_validate(fields)


def small(hidden: int, intermediate: int, heads: int, kv_heads: int, layers: int) -> Shape:
    return Shape(
        kind="qwen2", hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=kv_heads,
        layers=layers, rows=200, tied=False, positions=4096,
    )  # fmt: skip


def kept_bytes(shape: Shape, tokens: int, config: TrainConfig) -> int:
    """What autograd holds on to after a forward pass, without weights and their copies."""
    sizes = {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": shape.rows,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes)).eval()
    prepare(model, config, "it")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {tuple(shape) for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in copies:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(tokens)[None] % shape.rows
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, layer_passes(model, config):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [small(64, 384, 4, 2, 3), small(128, 512, 4, 4, 2), small(256, 640, 8, 2, 2)]
)
def test_activations_are_those_that_autograd_keeps(shape: Shape, precision: Any) -> None:
    tokens = 300
    whole = activation_bytes(shape, tokens, precision, recompute=False)
    assert whole == pytest.approx(
        kept_bytes(shape, tokens, TrainConfig(precision=precision)), rel=0.03
    )
    again = TrainConfig(precision=precision, recompute_layers=True)
    inputs = kept_bytes(shape, tokens, again)
    # While one layer is computed again, its activations are there as well.
    one = activation_bytes(
        shape.model_copy(update={"layers": 1}), tokens, precision, recompute=False
    )
    last = 9.4 * shape.hidden * tokens
    expected = activation_bytes(shape, tokens, precision, recompute=True)
    assert expected == pytest.approx(inputs + one - last, rel=0.03)


def test_memory_by_hand() -> None:
    found = estimate(run(), H100)
    parts = {(part.gpu, part.what): part.gib for part in found.parts}
    assert parts[0, "student, gradient and AdamW"] * GIB == pytest.approx(16 * 1.777e9, rel=1e-3)
    # 8,392 positions: the inputs of 28 layers and all of one, a thirtieth of keeping everything.
    shape, tokens = shape_of(STUDENT), 8392
    assert parts[0, "activations"] * GIB == pytest.approx(
        tokens * (4 * 28 * 1536 + 30.2 * 1536 + 4.6 * 256 + 8 * 8960 + 9.4 * 1536)
    )
    assert [part.gpu for part in found.parts if part.what == "student's sampler"] == [1, 2]
    assert parts[3, "teacher"] == pytest.approx(0.85 * 78)
    assert (found.gpus, found.faults) == (4, [])
    assert found.host_gib * GIB == 12 * shape.parameters
    assert found.disk_gib == pytest.approx(6 * found.host_gib)  # 50, 100, ... 300


def test_kept_activations_are_those_of_the_whole_step() -> None:
    small = {"prompts_per_step": 2, "rollouts_per_prompt": 2, "max_new_tokens": 100}
    one, four, whole = (
        trainer_memory(run(sampling=small, train=train), shape_of(STUDENT), 300)["activations"]
        for train in (
            {"micro_batch": 1, "recompute_layers": False},
            {"micro_batch": 128, "recompute_layers": False},
            {"micro_batch": 1, "recompute_layers": False, "keep_activations": True},
        )
    )
    assert four == whole == pytest.approx(4 * one)


def test_chunks_are_those_of_the_loss() -> None:
    assert CHUNK_LOGITS == logprobs.CHUNK_LOGITS


def test_keeping_fewer_checkpoints_takes_less_disk() -> None:
    kept = run(train={"keep_last": 1, "keep_best": 1, "save_every": 10})
    one = estimate(run(), H100).host_gib
    assert estimate(kept, H100).disk_gib == pytest.approx(
        4 * one
    )  # two, the next, and save_every's


def test_everything_on_one_gpu() -> None:
    config = run(
        engine={"kind": "vllm", "replicas": 1, "gpus": [], "memory_fraction": 0.3},
        teacher={"kind": "hf", "gpus": []},
    )
    found = estimate(config, H100)
    assert found.gpus == 1 and not found.faults
    names = [part.what for part in found.parts]
    assert names.count("teacher") == 1 and names.count("student's sampler") == 1
    teacher = next(part for part in found.parts if part.what == "teacher")
    assert teacher.gib * GIB == 2 * shape_of(TEACHER).parameters
    too_large = config.model_copy(
        update={"model": config.model.model_copy(update={"teacher": "Skywork/Skywork-OR1-32B"})}
    )
    (fault,) = estimate(too_large, H100).faults
    assert "GPU 0 needs" in fault and "the h100 has 78" in fault
    assert not estimate(too_large, GPUS["h200"]).faults


def test_a_model_that_its_share_of_the_gpu_does_not_hold() -> None:
    tight = run(model={"teacher": "Skywork/Skywork-OR1-32B"}, teacher={"memory_fraction": 0.6})
    (fault,) = estimate(tight, H100).faults
    assert "the teacher needs 65 GiB and memory_fraction 0.6 of a GPU gives it 47" in fault


def seconds(config: RunConfig, assume: Assumptions | None = None) -> dict[str, float]:
    return estimate(config, H100, assume=assume).seconds


def test_passes_of_the_trainer_by_hand() -> None:
    found = seconds(run())
    positions = 1024 * (200 + 0.6 * 8192)
    forward = 2 * (1.777088e9 + 28 * 1536 * (200 + 0.6 * 8192)) * positions
    assert found["student's scores"] == pytest.approx(forward / (0.5 * 989e12))
    # Forward, backward, and the layers once more.
    assert found["update"] == pytest.approx(4 * forward / (0.35 * 989e12))
    assert seconds(run(train={"precision": "float32"}))["update"] == pytest.approx(
        found["update"] * 989 / 67
    )
    assert seconds(run(train={"recompute_layers": False}))["update"] == pytest.approx(
        found["update"] * 3 / 4
    )


def test_sampling_and_teaching() -> None:
    found = seconds(run())
    four = seconds(run(engine={"replicas": 4, "gpus": [1, 2, 3, 4]}))
    assert 0.25 < four["sampling"] / found["sampling"] < 1.0
    # On a GPU of its own the teacher works meanwhile: only what is left is waited for.
    waited = seconds(run(teacher={"overlap": False}))["teacher"]
    assert found["teacher"] == pytest.approx(max(0.0, waited - found["sampling"]))
    short = seconds(run(), Assumptions(response_share=0.3))
    assert short["sampling"] < found["sampling"] and short["update"] < 0.55 * found["update"]
    assert seconds(run("grpo"))["teacher"] == 0.0
    assert seconds(run("sft"))["sampling"] == 0.0
    # Plain transformers pay for every layer of every token.
    slow = seconds(run(engine={"kind": "hf", "replicas": 1, "gpus": []}))
    assert slow["sampling"] > 5 * found["sampling"]


def test_what_else_a_method_draws_and_loads() -> None:
    assert seconds(run("dapo"))["sampling"] == pytest.approx(2 * seconds(run("grpo"))["sampling"])
    once = run("dapo", objective={"resample_rounds": 1})
    assert seconds(once)["sampling"] == seconds(run("grpo"))["sampling"]
    plain, against = run("opd"), run("exopd", model={"reference": "Skywork/Skywork-OR1-7B"})
    extra = estimate(against, H100).memory(0) - estimate(plain, H100).memory(0)
    assert extra * GIB == pytest.approx(2 * shape_of(TEACHER).parameters)
    # It scores in the trainer's process, after the sampling.
    assert seconds(against)["teacher"] > seconds(plain)["teacher"]
    itself = estimate(run("exopd"), H100).memory(0) - estimate(plain, H100).memory(0)
    assert itself * GIB == pytest.approx(2 * shape_of(STUDENT).parameters)


def test_the_shared_sampler_is_float32() -> None:
    few = {"prompts_per_step": 1, "rollouts_per_prompt": 1, "max_new_tokens": 100}
    shared = run(engine={"kind": "hf", "replicas": 1, "gpus": []}, sampling=few)
    (cache,) = (p.gib for p in estimate(shared, H100).parts if "cache" in p.what)
    assert cache * GIB == pytest.approx(300 * 2 * shape_of(STUDENT).cache_per_token)


def test_hours_and_money() -> None:
    found = estimate(run(), H100, evaluated=3200)
    training = 300 * sum(found.seconds.values()) / 3600
    assert found.hours == pytest.approx(training + found.evaluation_hours)
    assert found.gpu_hours == pytest.approx(4 * training + found.evaluation_hours)
    assert found.dollars == pytest.approx(2.5 * found.gpu_hours)
    twice = estimate(run(), H100, evaluated=6400)
    assert 1.8 < twice.evaluation_hours / found.evaluation_hours <= 2.0
    assert estimate(run(), H100).evaluation_hours == 0.0
    free: Estimate = dataclasses.replace(found, gpu=find_gpu("h100", 0.0))
    assert free.dollars == 0.0


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(ConfigError, match="no GPU 'h900'; choose one of a100"):
        find_gpu("h900")
    with pytest.raises(ConfigError, match="acme/llm"):
        estimate(run(model={"student": "acme/llm"}), H100)
