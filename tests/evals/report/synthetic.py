"""Synthetic studies: plausible learning curves in the files that a real study would leave.

A question has a difficulty, a checkpoint a skill, and a sample is right where a fixed draw of its
question and index lies below the logistic of their difference: verdicts on one question therefore
go together across methods, seeds and checkpoints, as real ones do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

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
    Family,
    Method,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir
from reopold.study_config import MicroConfig, ScalingConfig, StudyConfig, Sweep, Variant

FAMILIES: dict[str, Family] = {
    "micro_maths": "maths",
    "micro_visual": "visual",
    "micro_tools": "tools",
}
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
    benchmarks: tuple[str, ...] = ("micro_maths",)
    scaling: int = 0
    """Samples a question of the test-time scaling experiment, of reopold's runs and opd's."""
    sweeps: tuple[Sweep, ...] = ()
    teachers: tuple[str, ...] = ()
    """Further teachers, from each of which a variant `from_NAME` of reopold learns."""

    def study(self) -> StudyConfig:
        return StudyConfig(
            name="synthetic",
            methods=list(self.methods),
            seeds=list(self.seeds),
            micro=MicroConfig.model_validate(
                {
                    "families": [FAMILIES[name] for name in self.benchmarks],
                    "teachers": [{"name": name, "width": 64} for name in self.teachers],
                }
            ),
            sweeps=list(self.sweeps),
            variants=[
                Variant(name=f"from_{name}", method="reopold", teacher=name)
                for name in self.teachers
            ],
            sampling=SamplingConfig(prompts_per_step=8, rollouts_per_prompt=4),
            train=TrainConfig(steps=self.steps, checkpoint_every=self.every),
            evaluation=EvaluationConfig(
                benchmark=self.benchmarks[0], also=list(self.benchmarks[1:]), samples=self.samples
            ),
            scaling=ScalingConfig(samples=self.scaling),
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
    for place, name in enumerate(what.teachers, 1):
        level = TEACHER_SKILL - 0.5 * place
        write_run(folder, what, what.run(f"teacher-{name}", "sft", 0), {what.steps: level})
    for place, arm in enumerate(what.study().arms):
        # Arms of one method differ by a little, so that no two of them score the same.
        shift = 0.0 if arm.name in what.methods else -0.15 * (place - len(what.methods) + 1)
        for seed in arm.seeds:
            config = what.run(f"{arm.name}-s{seed}", arm.method, seed)
            wobble = np.random.default_rng([7, seed]).normal(0.0, 0.06) + shift
            skills = {
                step: skill(arm.method, step / what.steps) + wobble for step in _evaluated(config)
            }
            write_run(folder, what, config, skills)
    if "micro_visual" in what.benchmarks:
        write_pictures(folder, what)
    if what.scaling:
        write_scaling(folder, what)
    return folder


def write_pictures(folder: Path, what: Synthetic) -> None:
    images = folder / "micro" / "micro_visual" / "images"
    images.mkdir(parents=True)
    for question in range(what.questions):
        picture = Image.new("RGB", (24, 24), (250, 250, 250))
        ImageDraw.Draw(picture).rectangle((2, 2, 3 + question % 20, 12), fill=(200, 40, 40))
        picture.save(images / f"q{question:04d}.png")


def write_scaling(folder: Path, what: Synthetic) -> None:
    """STUDY/scaling: the teacher takes three times as long as a student and is ten times larger."""
    levels = {"student": -1.5, "teacher": TEACHER_SKILL}
    for method in (name for name in what.methods if name in ("reopold", "opd")):
        levels |= {f"{method}-s{seed}": SKILLS[method][1] + 0.05 * seed for seed in what.seeds}
    many = replace(what, samples=what.scaling)
    for who, level in levels.items():
        config = what.run(who, "sft", 0)
        large = who == "teacher"
        for benchmark in what.benchmarks:
            write_evaluation(
                folder / "scaling" / who / benchmark, config, what.steps,
                draw_verdicts(many, level), what.resamples, benchmark=benchmark,
                seconds=0.03 if large else 0.01, parameters=10_000 if large else 1000,
            )  # fmt: skip


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
    lines = [json.dumps(line) for line in metric_lines(config, what.benchmarks)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    RunDir(run).event("start", 0, "on cpu")
    RunDir(run).event("finish", config.train.steps, "all steps are done")
    for step, level in skills.items():
        for number, benchmark in enumerate(what.benchmarks):
            verdicts = draw_verdicts(what, level - 0.3 * number)
            place = run / "eval" / f"step-{step:06d}" / benchmark
            write_evaluation(place, config, step, verdicts, what.resamples, benchmark=benchmark)
    if config.method in ("reopold", "opd"):
        write_rollouts(run, config, what.benchmarks)


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


def metric_lines(
    config: RunConfig, benchmarks: Sequence[str] = ("micro_maths",)
) -> list[dict[str, float | int | str]]:
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
        if "micro_tools" in benchmarks:
            line |= {"rollout/turns": 2.1, "rollout/calls": 1.1, "rollout/failed_calls": 0.2}
        for family in (FAMILIES[name] for name in benchmarks if len(benchmarks) > 1):
            line[f"family/{family}/reward"] = float(0.4 + 0.3 * progress + draw.normal(0, 0.03))
        lines.append(line)
    return lines


def draw_verdicts(what: Synthetic, level: float) -> FloatArray:
    """1.0 or 0.0 for each question and sample; more skill never turns a right sample wrong."""
    shared = np.random.default_rng(5)
    difficulty_Q = shared.normal(0.8, 1.2, size=(what.questions, 1))
    luck_QK = shared.random((what.questions, what.samples))
    return (luck_QK < 1 / (1 + np.exp(difficulty_Q - level))).astype(np.float64)


def write_evaluation(
    place: Path,
    config: RunConfig,
    step: int,
    verdicts_QK: FloatArray,
    resamples: int = 200,
    *,
    benchmark: str = "micro_maths",
    seconds: float = 0.5,
    parameters: int = 1000,
) -> None:
    """results.json and samples.parquet as an evaluation writes them; odd questions are vision-only,
    and a dialogue calls its tool once, at the third sample twice and for nothing."""
    questions, k = verdicts_QK.shape
    visual, tools = benchmark == "micro_visual", benchmark == "micro_tools"
    rows = [
        SampleRow(
            question_id=f"q{question:04d}",
            sample=sample,
            prompt=f"{question} + 1 =",
            images=[f"/suite/images/q{question:04d}.png"] if visual else [],
            cluster=f"q{question:04d}",
            response=f"= {question + 1}",
            answer=None,
            response_ids=[1] * (20 if tools else 12),
            extracted=str(question + 1) if right else str(question + sample + 2),
            vote=RIGHT if right else f"wrong {sample}",
            gold=str(question + 1),
            correct=bool(right),
            status="ok",
            finish_reason="turns" if tools and sample == 2 else "stop",
            tokens=12,
            prompt_tokens=4,
            seconds=seconds,
            calls=(2 if sample == 2 else 1) if tools else 0,
            failed_calls=int(tools and sample == 2),
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
    for version, start in (("text_dominant", 0), ("vision_only", 1)) if visual else ():
        own = score_interval([float(line.mean()) for line in verdicts_QK[start::2]])
        scores.append(
            Score(
                metric=version,
                k=k,
                n=questions // 2,
                **own.__dict__,
                question_se=0.01,
                seed_se=None,
            )
        )
    results = Results(
        benchmark=benchmark,
        grader=GraderIdentity(name="final_answer", rule="sound", version=1),
        dtype="float32",
        family=FAMILIES[benchmark],
        checkpoint_step=step,
        checkpoint_digest=f"{step:064x}",
        n=questions,
        k=k,
        scores=scores,
        truncated_fraction=0.01,
        no_answer_fraction=0.02,
        parameters=parameters,
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
    write_results(place, results, rows)


def dialogue_record() -> dict[str, object]:
    """A dialogue of two turns; what the tool said is observed and was never scored."""
    signals = {"teacher_logprob": -0.2, "student_logprob": -0.9, "entropy": 0.4, "kept": True}
    silent = dict.fromkeys(("teacher_logprob", "student_logprob", "entropy"), 0.0) | {"kept": False}
    said = [
        *({"text": text, "observed": False, **signals} for text in ("<tool_call>", "12*34")),
        *({"text": text, "observed": True, **silent} for text in ("result: ", "408")),
        *({"text": text, "observed": False, **signals} for text in ("#", "408")),
    ]
    return {
        "prompt": "12 times 34?",
        "environment": "calculator",
        "calls": 1,
        "failed_calls": 0,
        "error": "",
        "dialogue": [
            {"role": "assistant", "content": "<tool_call>12*34", "tokens": 2},
            {"role": "tool", "content": "result: 408", "tokens": 2},
            {"role": "assistant", "content": "#408", "tokens": 2},
        ],
        "tokens": said,
    }


def write_rollouts(run: Path, config: RunConfig, benchmarks: Sequence[str]) -> None:
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
    if "micro_visual" in benchmarks:
        lines[1] |= {"prompt": "<image>add the digits", "images": ["/suite/images/q0001.png"]}
    if "micro_tools" in benchmarks:
        lines[2] |= dialogue_record()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"step-{config.train.steps:06d}.jsonl").write_text(text, encoding="utf-8")
