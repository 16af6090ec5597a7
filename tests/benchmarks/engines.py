"""Tokens per second of every engine, and what scoring ahead saves: `make benchmarks-engines`.

64 prompts x 4 samples of mixed lengths, on two models: the micro student, and one of 48M
parameters (width 512, 8 layers, 16,384 ids) made so that EOS has probability 0.03 at every token.
Everything runs side by side in one process on all cores, in interleaved rounds; medians of
wall-clock seconds are printed and kept in .reopold/benchmarks-engines.json. `model.generate` gets
the same prompts, no log-probs to return, and its own `num_return_sequences`. A quiet machine,
about five minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from reopold.config import DataConfig, ModelConfig, RunConfig, TeacherConfig, TrainConfig
from reopold.engines.export import export
from reopold.engines.hf import HFEngine
from reopold.micro.build import build_suite
from reopold.micro.models import build_model
from reopold.micro.tokenizer import build_tokenizer
from reopold.provenance import git_commit, hardware, versions
from reopold.rollouts import Needs, Rollout, SamplingParams
from reopold.run_dir import RunDir
from reopold.scoring import Scores
from reopold.study_config import MicroConfig
from reopold.teachers.base import SAMPLED_ONLY
from reopold.trainer import Trainer

PROMPTS, SAMPLES = 64, 4
EOS, EOS_PROBABILITY = 1, 0.03


@dataclass
class Subject:
    """A model, its prompts, and the longest response."""

    name: str
    model: Any
    tokenizer: Any
    prompts: list[list[int]]
    new_tokens: int


class Ids:
    """As much of a tokenizer as an engine reads, for a model without one."""

    eos_token_id, pad_token_id, eos_token = EOS, 0, "</s>"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def save_pretrained(self, folder: Path) -> None:
        """vLLM in process is given ids and needs none."""


def micro() -> Subject:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, width=64, layers=2, seed=1).eval()
    return Subject("micro", model, tokenizer, random_prompts(len(tokenizer), 5, 16), 48)


def medium() -> Subject:
    size, width = 16_384, 512
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2_048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=1_024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        # One hidden unit is constant, and EOS reads nothing else: its logit is a constant too.
        model.model.embed_tokens.weight[:, 0] = 3.0
        level = model.model(torch.randint(2, size, (4, 32))).last_hidden_state[..., 0].mean()
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[EOS] = 0.0
        model.lm_head.weight[EOS, 0] = math.log(size * EOS_PROBABILITY) / level
    name = f"{model.num_parameters() / 1e6:.0f}M"
    return Subject(name, model, Ids(size), random_prompts(size, 16, 64), 96)


def random_prompts(size: int, shortest: int, longest: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(shortest, longest + 1, (PROMPTS,), generator=generator)
    return [torch.randint(4, size, (int(n),), generator=generator).tolist() for n in lengths]


#: Samples with a seed; returns the tokens that were sampled.
Sampler = Callable[[int], int]


def engine_sampler(engine: Any, subject: Subject) -> Sampler:
    def sample(seed: int) -> int:
        rollouts = engine.generate(
            subject.prompts,
            SamplingParams(subject.new_tokens),
            seeds=range(seed * 1000, seed * 1000 + PROMPTS),
            n=SAMPLES,
        )
        return sum(len(rollout.response_ids) for rollout in rollouts)

    return sample


def generate_sampler(subject: Subject) -> Sampler:
    longest = max(map(len, subject.prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in subject.prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in subject.prompts])

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        out = subject.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            num_return_sequences=SAMPLES,
            max_new_tokens=subject.new_tokens,
            eos_token_id=EOS,
            pad_token_id=0,
            top_k=0,
            top_p=1.0,
        )[:, longest:]
        ended = (out == EOS).cumsum(1) - (out == EOS).long()
        return int((ended == 0).sum())

    return sample


def vllm_sampler(subject: Subject, folder: Path) -> Sampler:
    from reopold.engines.vllm import VLLMEngine

    served = export(
        subject.model,
        subject.tokenizer,
        folder / subject.name,
        version=0,
        vocab_size=len(subject.tokenizer),
        dtype=torch.float32,
    )
    engine = VLLMEngine(served, eos=EOS, vocab_size=len(subject.tokenizer), own_process=True)
    return engine_sampler(engine, subject)


def throughput(subject: Subject, folder: Path, rounds: int) -> dict[str, float]:
    """Tokens per second of each engine, and the ratio to `model.generate`."""
    samplers = {
        "hf": engine_sampler(HFEngine(subject.model, subject.tokenizer), subject),
        "model.generate": generate_sampler(subject),
    }
    if importlib.util.find_spec("vllm"):
        samplers["vllm"] = vllm_sampler(subject, folder)
    rates: dict[str, list[float]] = {name: [] for name in samplers}
    for i in range(rounds + 1):
        for name, sampler in samplers.items():
            started = time.perf_counter()
            tokens = sampler(i + 1)
            if i:  # the first round is not measured
                rates[name].append(tokens / (time.perf_counter() - started))
    found = {f"{name}, tokens/s": median(values) for name, values in rates.items()}
    base = found["model.generate, tokens/s"]
    ratios = {f"{name} / model.generate": found[f"{name}, tokens/s"] / base for name in samplers}
    return {**found, **ratios}


class Elsewhere:
    """A teacher on another machine: it costs this one nothing but the wait."""

    concurrent = True

    def __init__(self, seconds_per_rollout: float) -> None:
        self.seconds = seconds_per_rollout

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        time.sleep(self.seconds * len(rollouts))
        return Scores(torch.full((sum(len(r.response_ids) for r in rollouts),), -3.0), None)

    def close(self) -> None:
        pass


def overlap(suite: Path, folder: Path, steps: int) -> dict[str, float]:
    """Seconds of sampling and scoring, scored ahead or afterwards, one thread a trainer.

    Once with a vLLM teacher that shares these cores, once with one elsewhere that takes as long as
    the sampling does.
    """
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for place in ("here", "elsewhere"):
        seconds = {}
        for ahead in (True, False):
            kind: Any = "vllm" if place == "here" else "hf"
            teacher = TeacherConfig(kind=kind, overlap=ahead)
            run = RunDir(folder / f"{place}-{ahead}").create(step_recipe(suite, teacher))
            trainer = Trainer(run, run.config(), "cpu")
            if place == "elsewhere":
                trainer.teacher = Elsewhere(1.2e-3)
            for _ in range(steps):
                trainer._one_step()
            trainer.close()
            lines = run.metrics()[2:]
            stages = ("perf/seconds_sample", "perf/seconds_score")
            seconds[ahead] = median(sum(line[x] for x in stages) for line in lines)
        found[f"teacher {place}: ahead, s"] = seconds[True]
        found[f"teacher {place}: afterwards, s"] = seconds[False]
        found[f"teacher {place}: saved, share"] = 1.0 - seconds[True] / seconds[False]
    return found


def step_recipe(suite: Path, teacher: TeacherConfig) -> RunConfig:
    return RunConfig(
        name="overlap",
        method="opd",
        model=ModelConfig(student=str(suite / "student-init"), teacher=str(suite / "teacher-init")),
        data=DataConfig(train=str(suite / "micro_maths" / "train.jsonl")),
        teacher=teacher,
        train=TrainConfig(steps=1000, micro_batch=32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["throughput", "overlap"])
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for subject in () if options.only == "overlap" else (micro(), medium()):
            with torch.inference_mode():
                found[subject.name] = throughput(subject, folder, options.rounds)
        if options.only != "throughput" and importlib.util.find_spec("vllm"):
            build_suite(folder / "suite", MicroConfig(train_problems=500))
            found["a step's sampling and scoring"] = overlap(folder / "suite", folder, 12)
    for title, rows in found.items():
        print(f"\n{title}")
        for key, value in rows.items():
            print(f"  {key:32} {value:12.2f}")
    record = {
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware("cpu"),
        "rounds": options.rounds,
        **found,
    }
    out = Path(os.environ.get("REOPOLD_HOME") or ".reopold") / "benchmarks-engines.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2), encoding="utf-8")
    print(f"\nkept in {out}")


if __name__ == "__main__":
    main()
