"""Synthetic studies: plausible learning curves in the files that a real study would leave.

A question has a difficulty, a checkpoint a skill, and a sample is right where a fixed draw of its
question and index lies below the logistic of their difference: verdicts on one question therefore
go together across methods, seeds and checkpoints, as real ones do.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.report.statistics import FloatArray
from evals.results import (
    DatasetIdentity,
    GenerationSettings,
    GraderIdentity,
    Results,
    SampleRow,
    write_results,
)
from evals.scaling import majority_at_k, pass_at_k
from evals.scores import RIGHT, Score
from evals.stats import score_interval
from reopold.config import (
    DataConfig,
    EvaluationConfig,
    Method,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    StudyConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir

#: Skill at the start, at the end, and the share of the steps in which most of it is gained.
SKILLS = {"reopold": (0.2, 1.9, 0.25), "opd": (0.2, 1.7, 0.4), "grpo": (0.2, 1.1, 0.8)}
TEACHER_SKILL = 2.3


@dataclass(frozen=True)
class Synthetic:
    """What to generate; the defaults are small enough for a test of some seconds."""

    methods: tuple[Method, ...] = ("reopold", "opd", "grpo")
    seeds: tuple[int, ...] = (1, 2, 3)
    questions: int = 40
    samples: int = 4
    steps: int = 12
    every: int = 4
    resamples: int = 200

    def study(self) -> StudyConfig:
        return StudyConfig(
            name="synthetic",
            methods=list(self.methods),
            seeds=list(self.seeds),
            sampling=SamplingConfig(prompts_per_step=8, rollouts_per_prompt=4),
            train=TrainConfig(steps=self.steps, checkpoint_every=self.every),
            evaluation=EvaluationConfig(samples=self.samples),
        )

    def run(self, name: str, method: Method, seed: int) -> RunConfig:
        study = self.study()
        return RunConfig(
            name=name,
            method=method,
            seed=seed,
            model=ModelConfig(student="/models/student", teacher="/models/teacher"),
            data=DataConfig(train="/data/train.jsonl"),
            sampling=study.sampling,
            train=study.train,
            evaluation=study.evaluation,
        )


def write_study(folder: Path, what: Synthetic) -> Path:
    """Write the whole study; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(what.study().model_dump_json(indent=2), encoding="utf-8")
    write_run(folder, what, what.run("student", "sft", 0), {what.steps: SKILLS["opd"][0]})
    write_run(folder, what, what.run("teacher", "sft", 0), {what.steps: TEACHER_SKILL})
    for method in what.methods:
        for seed in what.seeds:
            config = what.run(f"{method}-s{seed}", method, seed)
            wobble = np.random.default_rng([7, seed]).normal(0.0, 0.06)
            skills = {
                step: skill(method, step / what.steps) + wobble for step in _evaluated(config)
            }
            write_run(folder, what, config, skills)
    return folder


def _evaluated(config: RunConfig) -> list[int]:
    return config.checkpoint_steps()


def skill(method: str, progress: float) -> float:
    start, end, pace = SKILLS[method]
    return start + (end - start) * math.expm1(-progress / pace) / math.expm1(-1 / pace)


def write_run(folder: Path, what: Synthetic, config: RunConfig, skills: dict[int, float]) -> None:
    """One run directory, evaluated at the steps of `skills`."""
    run = folder / "runs" / config.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(config.canonical_json(), encoding="utf-8")
    write_manifest(run, config, "finished", config.train.steps)
    lines = [json.dumps(line) for line in metric_lines(config)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    RunDir(run).event("start", 0, "on cpu")
    RunDir(run).event("finish", config.train.steps, "all steps are done")
    for step, level in skills.items():
        verdicts = draw_verdicts(what, level)
        write_evaluation(run, config, step, verdicts, what.resamples)
    if config.method in ("reopold", "opd"):
        write_rollouts(run, config)


def write_manifest(run: Path, config: RunConfig, status: str, step: int) -> None:
    manifest = {
        "status": status,
        "step": step,
        "steps": config.train.steps,
        "config_digest": RunDir(run).digest(),
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"python": "3.11.9", "reopold": "0.1.0", "torch": "2.13.0+cpu"},
        "hardware": {"platform": "Linux x86_64", "cpu_count": 2, "device": "cpu"},
        "parents": {"student": "ab" * 32, "teacher": "cd" * 32},
        "started_at": 1.0e9,
        "updated_at": 1.0e9 + 60,
        "seconds": 0.5 * step,
        "message": "",
    }
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def metric_lines(config: RunConfig) -> list[dict[str, float | int | str]]:
    """A line a step; distillation has a teacher's reward, only reopold drops tokens."""
    draw = np.random.default_rng([11, config.seed, len(config.method)])
    lines: list[dict[str, float | int | str]] = []
    tokens = 0
    for step in range(config.train.steps):
        progress = step / config.train.steps
        tokens += config.samples_per_step * (18 + step % 3)
        line: dict[str, float | int | str] = {
            "step": step,
            "phase": config.phase(step),
            "time": 1.0e9 + step,
            "samples": (step + 1) * config.samples_per_step,
            "tokens": tokens,
            "train/grad_norm": float(0.6 - 0.3 * progress + draw.normal(0, 0.05)),
            "train/clip_fraction": float(0.02 + 0.1 * progress + draw.normal(0, 0.004)),
            "train/kept_fraction": 1.0,
            "rollout/entropy": float(0.9 - 0.5 * progress + draw.normal(0, 0.02)),
            "rollout/reward": float(0.45 + 0.3 * progress + draw.normal(0, 0.03)),
            "rollout/length": float(18 + 4 * progress + draw.normal(0, 0.4)),
            "rollout/truncated_fraction": float(abs(draw.normal(0.02, 0.01))),
            "perf/seconds_total": 0.4 + (0.2 if config.model.teacher else 0.0),
        }
        if config.method == "reopold":
            kept = 0.9 if config.phase(step) == "exploration" else 0.2
            line["train/kept_fraction"] = float(kept + draw.normal(0, 0.01))
        if config.method in ("reopold", "opd"):
            line["teacher/reward"] = float(-0.4 + 0.3 * progress + draw.normal(0, 0.03))
        lines.append(line)
    return lines


def draw_verdicts(what: Synthetic, level: float) -> FloatArray:
    """1.0 or 0.0 for each question and sample; more skill never turns a right sample wrong."""
    shared = np.random.default_rng(5)
    difficulty_Q = shared.normal(0.8, 1.2, size=(what.questions, 1))
    luck_QK = shared.random((what.questions, what.samples))
    return (luck_QK < 1 / (1 + np.exp(difficulty_Q - level))).astype(np.float64)


def write_evaluation(
    run: Path, config: RunConfig, step: int, verdicts_QK: FloatArray, resamples: int = 200
) -> None:
    """results.json and samples.parquet as an evaluation writes them."""
    questions, k = verdicts_QK.shape
    rows = [
        SampleRow(
            question_id=f"q{question:04d}",
            sample=sample,
            prompt=f"{question} + 1 =",
            images=[],
            cluster=f"q{question:04d}",
            response=f"= {question + 1}",
            response_ids=[1, 2],
            extracted=str(question + 1) if right else str(question + sample + 2),
            vote=RIGHT if right else f"wrong {sample}",
            gold=str(question + 1),
            correct=bool(right),
            status="ok",
            finish_reason="stop",
            tokens=12,
            prompt_tokens=4,
            seconds=0.5,
            calls=0,
            failed_calls=0,
        )
        for question, line in enumerate(verdicts_QK)
        for sample, right in enumerate(line)
    ]
    answers = [[row.vote for row in rows[q * k : (q + 1) * k]] for q in range(questions)]
    values = {
        "avg@k": [float(line.mean()) for line in verdicts_QK],
        "pass@k": [pass_at_k(k, int(line.sum()), k) for line in verdicts_QK],
        "maj@k": [majority_at_k(answers[q], RIGHT, k) for q in range(questions)],
    }
    scores = []
    for metric, per_question in values.items():
        interval = score_interval(per_question, resamples=resamples)
        scores.append(
            Score(
                metric=metric,
                k=k,
                n=questions,
                **interval.__dict__,
                question_se=0.01,
                seed_se=0.005,
            )
        )
    results = Results(
        benchmark=config.evaluation.benchmark,
        grader=GraderIdentity(name="final_answer", rule="sound", version=1),
        dtype="float32",
        family=config.family,
        checkpoint_step=step,
        checkpoint_digest=f"{step:064x}",
        n=questions,
        k=k,
        scores=scores,
        truncated_fraction=0.01,
        no_answer_fraction=0.02,
        parameters=1000,
        metric="avg@k",
        statuses={"ok": questions * k},
        tokens=12 * questions * k,
        seconds=1.5,
        generation=GenerationSettings(
            engine="hf",
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=48,
            max_turns=1,
            thinking_tokens=0,
            ignore_end=0,
            seed=1234,
        ),
        dataset=DatasetIdentity(path="/data/test.jsonl", revision=None, digest="ef" * 32, limit=0),
        isolation="",
        versions={"python": "3.11.9"},
    )
    write_results(run / "eval" / f"step-{step:06d}" / results.benchmark, results, rows)


def write_rollouts(run: Path, config: RunConfig) -> None:
    draw = np.random.default_rng(13)
    folder = run / "rollouts"
    folder.mkdir(exist_ok=True)
    lines = []
    for index in range(8):
        texts = f"{index} 7 * 3 = 2 1 ; 2 1 + {index} = {21 + index} <eos>".split(" ")
        tokens = [
            {
                "text": text + " ",
                "teacher_logprob": float(-abs(draw.normal(0.2, 0.8))),
                "student_logprob": float(-abs(draw.normal(0.4, 0.5))),
                "entropy": float(abs(draw.normal(0.4, 0.4))),
                "kept": bool(draw.random() < 0.2),
            }
            for text in texts
        ]
        lines.append(
            {
                "prompt": f"{index} + 7 * 3",
                "response": "".join(str(token["text"]) for token in tokens),
                "answer": str(21 + index),
                "reward": float(index % 2),
                "finish_reason": "stop",
                "tokens": tokens,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"step-{config.train.steps:06d}.jsonl").write_text(text, encoding="utf-8")
