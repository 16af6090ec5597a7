"""Recipes: what a run is, as frozen pydantic models. Importable without torch.

A run is named by the SHA-256 of its canonical JSON; a study expands to runs. Every field is flat or
singly nested, without unions, so that Prefect can show it as a form and refuse a misspelt key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal[
    "reopold",
    "opd",
    "exopd",
    "iw_opd",
    "entropy_opd",
    "trust_region",
    "gkd",
    "grpo",
    "dr_grpo",
    "dapo",
    "sft",
]
Family = Literal["maths", "visual", "tools", "code"]
#: What an outcome is worth (:mod:`reopold.answers.judge`).
Reward = Literal["final_answer", "maths", "calls", "none"]
#: What an alarm does; `warn` is the least, an event that people are told of.
Policy = Literal["off", "warn", "pause", "stop", "rollback"]

#: Methods that learn from a teacher's scores of the student's samples.
DISTILLATION_METHODS: tuple[Method, ...] = (
    "reopold",
    "opd",
    "exopd",
    "iw_opd",
    "entropy_opd",
    "trust_region",
    "gkd",
)
#: Methods that learn from the outcomes of the samples of a prompt.
GROUP_METHODS: tuple[Method, ...] = ("grpo", "dr_grpo", "dapo")
#: Prompts within which the shares of a mix must come out exactly.
LONGEST_ROUND = 10_000


Section = TypeVar("Section", bound="Strict")


class ConfigError(Exception):
    """A recipe, path or environment the user must mend before any work can start (exit code 2)."""


class Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def canonical_json(self) -> str:
        """The one way a config is written to disk, so that equal configs are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2)


class ModelConfig(Strict):
    student: str
    """Student checkpoint: a folder (starting with `.`, `/` or `~`) or a hub id."""
    teacher: str = ""
    """Teacher checkpoint, of the student's tokenizer; empty where none is needed (grpo, sft)."""
    reference: str = ""
    """exopd: the model that the teacher's reward is measured against; by default the student as it
    starts. The teacher's own base model is the other usual choice."""
    freeze_vision: bool = False
    """Leave the vision tower of a vision-language student as it is; its projector learns."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of the teacher, and of the student when vLLM samples or it is evaluated. The student
    trains in float32: AdamW at lr 1e-6 would leave bfloat16 weights where they are."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the first GPU that is visible, else the CPU."""


class PromptSet(Strict):
    """Further prompts of a run, mixed with those of `data.train`."""

    train: str
    """JSONL prompts, as `data.train`."""
    family: Family
    """Metrics are also logged by family."""
    weight: float = Field(1.0, gt=0.0)
    """Share of the prompts of every step, against the weights of the others."""


class DataConfig(Strict):
    train: str
    """JSONL prompts, a path starting with `.`, `/` or `~`; a line is `{"id", "prompt": [chat
    messages], "answer", "completion"?, "source"?, "images"?, "environment"?}` (docs/data.md)."""
    weight: float = Field(1.0, gt=0.0)
    """With `mix`: share of these prompts."""
    mix: list[PromptSet] = []
    """Further prompts, of the same or of other families; every step has its share of each."""
    reward: Reward = "final_answer"
    """Outcome reward of a rollout, 1 or 0. `final_answer`: the text after its last `#` is `answer`.
    `maths`: its boxed or stated answer equals `answer` as mathematics. `calls`: its tool calls are
    those of `answer`, a JSON list. grpo, dr_grpo and dapo learn from it, and any distillation
    method with objective.outcome_weight; the rest log it."""

    @model_validator(mode="after")
    def _shares_are_whole(self) -> Self:
        if sum(self.shares) > LONGEST_ROUND:
            raise ValueError(
                f"the weights' shares are exact after {sum(self.shares):,} prompts only, more than "
                f"{LONGEST_ROUND:,}: write them in fewer digits, for example 2 and 1"
            )
        return self

    @property
    def shares(self) -> tuple[int, ...]:
        """The weights as whole numbers without a common divisor, `train` first: of so many prompts
        in a row as their sum, each set has its number."""
        written = [self.weight, *(other.weight for other in self.mix)]
        weights = [Fraction(repr(weight)) for weight in written]
        scale = math.lcm(*(weight.denominator for weight in weights))
        whole = [int(weight * scale) for weight in weights]
        return tuple(share // math.gcd(*whole) for share in whole)


class ServingConfig(Strict):
    """Where a model runs that is asked for tokens or for scores."""

    kind: Literal["hf", "vllm", "server"] = "hf"
    """`hf`: plain transformers in the trainer's process. `vllm`: vLLM in the trainer's process.
    `server`: vLLM servers, those at `urls` or else `replicas` of them that are started."""
    urls: list[str] = []
    """server: addresses such as `http://host:8000`, all of the same model. A student's servers need
    REOPOLD's worker (docs/engines.md); a teacher may be any OpenAI-compatible server that returns
    prompt log-probs."""
    replicas: int = Field(1, ge=1)
    """server, without `urls`: servers to start. They end with the trainer, however it ends."""
    python: str = ""
    """server, without `urls`: interpreter that has vLLM; empty takes the trainer's own."""
    gpus: list[Annotated[int, Field(ge=0)]] = []
    """server, without `urls`: the GPU of each replica, counted among those of the run, of which the
    trainer has 0; empty: all on the trainer's."""
    memory_fraction: float = Field(0.4, gt=0.0, le=0.95)
    """vllm, server: share of a GPU's memory for weights and cache."""
    max_length: int = Field(0, ge=0)
    """vllm, server: longest prompt and response; 0 takes the model's own limit."""
    concurrency: int = Field(64, ge=1)
    """server: requests under way at once."""
    timeout_seconds: float = Field(600.0, gt=0.0)
    """server: a request that takes longer is tried again."""
    retries: int = Field(4, ge=0)
    """server: further attempts, each after twice the pause, before the step fails."""

    @model_validator(mode="after")
    def _servers_only(self) -> Self:
        if self.kind != "server" and (self.urls or self.gpus or self.replicas > 1):
            raise ValueError(f"urls, gpus and replicas are for kind 'server', not '{self.kind}'")
        if self.gpus and len(self.gpus) != self.replicas:
            raise ValueError(f"gpus must name one GPU for each of {self.replicas} replicas")
        return self


class EngineConfig(ServingConfig):
    """What samples. The student's weights are handed to it after every step."""

    gap_warn: float = Field(0.05, gt=0.0)
    """Mean |log-prob of trainer - log-prob of sampler| in nats above which an alarm is raised
    (health.sampler_gap)."""
    gap_stop: float = Field(0.5, gt=0.0)
    """The same, above which the run ends: sampler and trainer are not the same model."""

    @model_validator(mode="after")
    def _warn_before_stop(self) -> Self:
        if self.gap_stop < self.gap_warn:
            raise ValueError("gap_stop must not be below gap_warn")
        return self


class TeacherConfig(ServingConfig):
    """What scores the student's samples with the teacher's weights."""

    served_name: str = ""
    """server with `urls`: the name the model is served under; empty takes the only one."""
    interface: Literal["prompt_logprobs", "token_ids", "echo"] = "prompt_logprobs"
    """server: vLLM's `prompt_logprobs`; `token_ids`, its `prompt_logprob_token_ids`, which holds no
    row of the vocabulary in memory (needs vLLM's V2 model runner); or `echo` with `logprobs`, as
    OpenAI's completions had it. Only the first also returns top_k ids."""
    overlap: bool = True
    """vllm, server: score finished rollouts while the rest are sampled."""


class SourceTeacher(TeacherConfig):
    """A teacher for the prompts of some sources; all others go to `model.teacher`."""

    sources: list[str] = Field(min_length=1)
    """Values of a prompt's `source`."""
    model: str = Field(min_length=1)
    """Checkpoint, of the student's tokenizer."""


class SamplingConfig(Strict):
    """Rollouts. There is no top-p, top-k or min-p: they renormalise in the sampler only, and the
    importance ratio would be wrong (pitfalls, trl #6789)."""

    prompts_per_step: int = Field(32, ge=1)
    """Distinct prompts a step (P)."""
    rollouts_per_prompt: int = Field(4, ge=1)
    """Samples a prompt (G). The group that grpo compares within."""
    max_new_tokens: int = Field(48, ge=1)
    """A rollout that reaches this is truncated: it is kept, and the share of them is logged. In a
    dialogue with tools: everything after the prompt, observations included."""
    temperature: float = Field(1.0, gt=0.0, le=2.0)
    """Sampling temperature. Log-probs and entropies are those of temperature 1 all the same."""
    max_turns: int = Field(8, ge=1)
    """Messages of the model in a dialogue with tools."""
    tool_seconds: float = Field(60.0, gt=0.0)
    """Wall-clock that the tools of one dialogue may take; then it ends."""


class ObjectiveConfig(Strict):
    """Every method reads the settings that name it and ignores the others, so that the runs of a
    study can share one section."""

    lam: float = Field(0.3, gt=0.0, lt=1.0)
    """reopold: lambda of the reward floor (method.md section 2). Smaller: a lower floor, less
    clipping."""
    floor: Literal["mixture", "odds"] = "mixture"
    """reopold: `log(lam)/(1-lam)` or `log(lam/(1-lam))`; the odds form refuses lam >= 0.5."""
    beta: float = Field(0.2, gt=0.0, le=1.0)
    """reopold: fraction of tokens that refinement (phase II) learns from."""
    clip: bool = True
    """reopold: refinement takes max(R, floor); off takes R as it is."""
    mask: Literal["entropy", "reward", "random", "none"] = "entropy"
    """reopold: tokens that refinement keeps: the beta fraction of highest entropy, those with
    R >= floor, a beta fraction drawn by chance (the control), or all."""
    phases: Literal["two", "one"] = "two"
    """reopold: exploration then refinement, or refinement from the first step."""
    switch_fraction: float = Field(0.5, ge=0.0, le=1.0)
    """reopold: share of the steps spent in exploration (phase I) before refinement starts."""
    switch_step: int = Field(-1, ge=-1)
    """reopold: first step of refinement, counted from 0; -1 takes switch_fraction."""
    reward_at: Literal["old", "current"] = "old"
    """Distillation: R under the policy that sampled, or under the policy just before each update.
    They differ only with train.updates_per_step > 1, where "current" scores once more an update."""
    logprob_temperature: float = Field(1.0, gt=0.0, le=2.0)
    """Log-probs and entropies of student and teacher are those of logits / this. 1 is the method's
    setting; sampling.temperature is the other choice met in the wild."""
    sampler_weights: Literal["none", "token", "sequence"] = "none"
    """Weighs a token's advantage by min(pi_old / sampler, sampler_weight_cap), of the token or of
    its whole sequence: truncated importance sampling, for engines that differ from the trainer."""
    sampler_weight_cap: float = Field(2.0, ge=1.0)
    """Largest such weight."""
    outcome_weight: float = Field(0.0, ge=0.0)
    """Distillation: adds this many group-normalised outcome advantages to the token's reward."""
    reward_scale: float = Field(1.25, gt=0.0)
    """exopd: weight of the teacher's reward against the KL to the reference; 1 is opd, above 1
    extrapolates beyond the teacher."""
    gamma: float = Field(0.5, ge=0.0)
    """iw_opd: extra weight of a sequence's first token; it falls to 0 along the sequence."""
    entropy_threshold: float = Field(0.8, ge=0.0)
    """entropy_opd: teacher entropy in nats from which the forward KL is added."""
    forward_weight: float = Field(1.0, ge=0.0)
    """entropy_opd, trust_region: weight of the forward KL."""
    divergence: Literal["forward", "reverse", "js"] = "reverse"
    """gkd: KL(teacher, student), KL(student, teacher), or the generalised Jensen-Shannon."""
    support: Literal["full", "top_k", "sampled"] = "full"
    """gkd: the whole vocabulary, or the teacher's top_k ids and a tail bucket. "sampled" is
    refused: it would be K1 as a direct loss, whose expected gradient is zero."""
    mixture: float = Field(0.5, gt=0.0, lt=1.0)
    """gkd with js: the teacher's share in the mixture."""
    top_k: int = Field(64, ge=1)
    """gkd with top_k support, entropy_opd, trust_region: ids of the teacher that are compared."""
    ratio_clip: float = Field(0.2, gt=0.0, lt=1.0)
    """grpo, dr_grpo, dapo: PPO clip of the importance ratio, how far below 1 (and above, but for
    dapo). The distillation methods clip the reward instead."""
    ratio_clip_high: float = Field(0.28, gt=0.0)
    """dapo: how far above 1 the ratio may go (clip-higher)."""
    overlong_buffer: int = Field(0, ge=0)
    """dapo: tokens before sampling.max_new_tokens over which a penalty grows to -1; 0 is none."""
    resample_rounds: int = Field(3, ge=1)
    """dapo: times that prompts are drawn for a step until prompts_per_step of them have mixed
    outcomes (dynamic sampling); 1 never draws again."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.floor == "odds" and self.lam >= 0.5:
            raise ValueError(
                f"floor 'odds' needs lam < 0.5 (got {self.lam}): the floor log(lam/(1-lam)) would "
                "not be negative; lower lam or use floor 'mixture'"
            )
        if self.support == "sampled":
            raise ValueError(
                "support 'sampled' would make gkd K1 as a direct loss, whose expected gradient is "
                "zero (OpenRLHF PR 1309); use method 'opd', or support 'top_k' or 'full'"
            )
        return self


class OptimizerConfig(Strict):
    lr: float = Field(3e-4, gt=0.0)
    """AdamW learning rate, constant after the warm-up. 1e-6 (7B) to 5e-6 (1.5B) for real models."""
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    grad_clip: float = Field(1.0, gt=0.0)
    """Gradient norm above which the gradient is scaled down."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant (the method's setting) or a cosine down to 0 (for sft)."""


class TrainConfig(Strict):
    steps: int = Field(100, ge=1)
    """Optimiser steps. One step is one batch of prompts_per_step x rollouts_per_prompt samples."""
    checkpoint_every: int = Field(25, ge=1)
    """Steps between checkpoints. Every checkpoint is evaluated; the last step always is one."""
    save_every: int = Field(0, ge=0)
    """Steps between further checkpoints to go on from, which are not evaluated and make room for
    the next; 0 saves with checkpoint_every only. What a killed run loses at most."""
    background_saves: bool = True
    """Write a checkpoint while the training goes on, from a copy in memory (weights and AdamW's two
    moments); off waits for the disk instead."""
    keep_last: int = Field(0, ge=0)
    """Newest checkpoints that stay on disk once they are evaluated; 0 keeps all. The run's last one
    always stays; of the others the evaluation and the digest do."""
    keep_best: int = Field(1, ge=0)
    """With keep_last: checkpoints of the best scores that stay as well."""
    updates_per_step: int = Field(1, ge=1)
    """Optimiser updates that a step's rollouts are split into, by prompts. 1 is on-policy; with
    more, the importance ratio leaves 1."""
    micro_batch: int = Field(128, ge=1)
    """Sequences a forward-backward pass. The gradient does not depend on it, memory does."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the student's layers, forward and backward. Weights, optimiser and log-probs are float32
    either way; with bfloat16 a GPU multiplies the head in TF32."""
    recompute_layers: bool = False
    """Keep each layer's input only and compute the layer again in the backward pass: a forward
    pass more, and a fraction of the memory. For long responses."""
    keep_activations: bool = False
    """Keep the student's activations from scoring to the update: one forward pass less, and the
    memory of the whole step instead of one micro-batch. For small models."""
    keep_rollouts: int = Field(8, ge=0)
    """Rollouts written to `rollouts/` at every checkpoint, to read with one's own eyes."""
    threads: int = Field(1, ge=1)
    """CPU threads of the trainer. More than one changes float sums, hence the bits."""


class HealthConfig(Strict):
    """Alarms on the metrics of a run, and what each does (docs/health.md).

    `off` looks away, `warn` tells, `pause` saves and ends until somebody starts the run again,
    `stop` ends it, `rollback` goes on from the last healthy checkpoint with rollback_set.
    """

    window: int = Field(10, ge=2)
    """Steps that are averaged before an alarm judges them, and quiet steps that end an alarm.
    Smaller: sooner and more often wrong."""
    entropy_collapse: Policy = "warn"
    """The samples of the student hardly differ any more."""
    entropy_share: float = Field(0.1, gt=0.0, lt=1.0)
    """entropy_collapse: below this share of the first step's entropy."""
    length_inflation: Policy = "warn"
    """Responses grow, and more of them are truncated."""
    length_factor: float = Field(1.5, gt=1.0)
    """length_inflation: longer than the first step's responses by this factor, with truncation up
    by half of truncation_rise."""
    truncation: Policy = "warn"
    """Responses reach sampling.max_new_tokens that did not at the start."""
    truncation_rise: float = Field(0.2, gt=0.0, lt=1.0)
    """truncation: share of truncated responses above that of the first step."""
    repetition: Policy = "warn"
    """Responses go round in circles."""
    repetition_rise: float = Field(0.2, gt=0.0, lt=1.0)
    """repetition: share of repeated 4-grams above that of the first step."""
    reward_collapse: Policy = "warn"
    """The student unlearns: by the outcome reward, or by the teacher's."""
    reward_share: float = Field(0.7, gt=0.0, lt=1.0)
    """reward_collapse: outcome reward below this share of the first step's or the best window's."""
    teacher_factor: float = Field(3.0, gt=1.0)
    """reward_collapse: teacher's reward (negative) below the first step's times this."""
    gradient_spike: Policy = "warn"
    """A gradient unlike those before it."""
    gradient_factor: float = Field(10.0, gt=1.0)
    """gradient_spike: norm above this many medians of the window before it, within a phase, and
    above optimizer.grad_clip."""
    sampler_gap: Policy = "warn"
    """Sampler and trainer drift apart: above engine.gap_warn."""
    non_finite: Policy = "warn"
    """A metric is NaN or infinite."""
    rollback_set: list[str] = ["optimizer.lr=*0.5"]
    """What a rollback changes, as `--set` takes it; `*0.5` multiplies the number that is there."""
    rollback_limit: int = Field(2, ge=0)
    """Rollbacks of a run; an alarm that asks for one more stops it."""

    @property
    def rolls_back(self) -> bool:
        return "rollback" in (getattr(self, name) for name in type(self).model_fields)


class EvaluationConfig(Strict):
    benchmark: str = "micro_maths"
    """Benchmark under `evals/benchmarks` that every checkpoint is evaluated on."""
    also: list[str] = []
    """Further benchmarks, with the same settings; the first is the one that checkpoints are chosen
    by."""
    data: str = ""
    """The benchmark's test items: a file, its folder, or a folder of benchmarks. Empty: where
    `reopold evaluate --list` finds them."""
    samples: int = Field(4, ge=1)
    """Samples a question (k of avg@k, pass@k and maj@k)."""
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    """Sampling temperature of the evaluation; 0 is greedy."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus of the evaluation's sampling; published protocols use 0.95. Training has none."""
    max_new_tokens: int = Field(48, ge=1)
    """Of one answer; in a dialogue with tools, of all its turns."""
    max_turns: int = Field(8, ge=1)
    """Of a dialogue with tools; other benchmarks have one."""
    thinking_tokens: int = Field(0, ge=0)
    """Budget forcing (s1): most tokens of the thought, which is then closed; 0 forces nothing.
    `max_new_tokens` is then the answer's own."""
    ignore_end: int = Field(0, ge=0)
    """Budget forcing: times that the end of the thought is replaced by "Wait"."""
    rule: str = ""
    """Grading rule, where a benchmark has several; empty is its default, the sound one."""
    limit: int = Field(0, ge=0)
    """Only the first so many items, for a trial; 0 is all. The score says how many there were."""
    batch_size: int = Field(512, ge=1)
    """Sequences sampled together. The score does not depend on it beyond float noise."""
    seed: int = Field(1234, ge=0)
    """Seed of the evaluation's samples, the same for every method and checkpoint."""
    engine: Literal["hf", "vllm", "server"] = "hf"
    """What samples: plain transformers, vLLM in the evaluation's process, or a vLLM server that
    serves the checkpoint at `urls`."""
    urls: list[str] = []
    """Addresses of servers, replicas of one another, for engine `server`."""

    @property
    def benchmarks(self) -> list[str]:
        """All of them, the one that decides first."""
        return [self.benchmark, *self.also]

    @model_validator(mode="after")
    def _each_benchmark_once(self) -> Self:
        names = self.benchmarks
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluation names {', '.join(twice)} twice in benchmark and also")
        return self


class Training(Strict):
    """The sections that a run and the study that it belongs to have in common."""

    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    teacher: TeacherConfig = TeacherConfig()
    teachers: list[SourceTeacher] = []
    """Further teachers, by the source of a prompt."""
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    health: HealthConfig = HealthConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _rollback_is_possible(self) -> Self:
        _check_rollback(self)
        return self

    @property
    def evaluations(self) -> list[EvaluationConfig]:
        """One for each benchmark, the first first."""
        alone = self.evaluation.model_copy(update={"also": []})
        names = self.evaluation.benchmarks
        return [alone.model_copy(update={"benchmark": name}) for name in names]


class RunConfig(Training):
    """One training run: a method, a seed, and everything that decides its result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder, for example `reopold-s1`."""
    method: Method = "reopold"
    family: Family = "maths"
    seed: int = Field(0, ge=0)
    model: ModelConfig
    data: DataConfig

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        if self.method in DISTILLATION_METHODS and not self.model.teacher:
            raise ValueError(f"method '{self.method}' needs model.teacher")
        mixed = self.method in DISTILLATION_METHODS and self.objective.outcome_weight > 0.0
        if self.method in GROUP_METHODS or mixed:
            who = "objective.outcome_weight" if mixed else f"method '{self.method}'"
            if self.sampling.rollouts_per_prompt < 2:
                raise ValueError(
                    f"{who} compares within a group: rollouts_per_prompt must be at least 2"
                )
            if self.data.reward == "none":
                raise ValueError(f"{who} learns from the outcome: data.reward must not be 'none'")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_run(self) -> Self:
        objective, length = self.objective, self.sampling.max_new_tokens
        if self.method == "dapo" and objective.overlong_buffer > length:
            raise ValueError(
                f"objective.overlong_buffer ({objective.overlong_buffer}) must not exceed "
                f"sampling.max_new_tokens ({length})"
            )
        if self.method == "dapo" and objective.ratio_clip_high < objective.ratio_clip:
            raise ValueError("objective.ratio_clip_high must not be below objective.ratio_clip")
        if objective.switch_step > self.train.steps:
            raise ValueError(
                f"objective.switch_step ({objective.switch_step}) lies beyond the last of "
                f"{self.train.steps} steps; use -1 for switch_fraction"
            )
        if self.train.keep_activations and self.train.updates_per_step > 1:
            raise ValueError(
                "train.keep_activations is for one update a step: the second would be of old ones"
            )
        if self.train.keep_activations and self.train.recompute_layers:
            raise ValueError(
                "train.keep_activations keeps what train.recompute_layers computes again: "
                "choose one"
            )
        if self.train.updates_per_step > self.sampling.prompts_per_step:
            raise ValueError(
                f"train.updates_per_step ({self.train.updates_per_step}) splits a step by prompts: "
                f"at most prompts_per_step ({self.sampling.prompts_per_step})"
            )
        return self

    @model_validator(mode="after")
    def _served_models_can_do_it(self) -> Self:
        """What vLLM does not return is refused here, not found out at the first step."""
        temperatures = (1.0, self.sampling.temperature)
        if self.engine.kind != "hf" and self.objective.logprob_temperature not in temperatures:
            raise ValueError(
                f"engine.kind '{self.engine.kind}' gives log-probs at temperature 1 or at "
                "sampling.temperature: set objective.logprob_temperature to one of them"
            )
        if self.method == "gkd" and self.objective.sampler_weights != "none":
            raise ValueError("objective.sampler_weights weighs advantages: gkd has none")
        if self.method not in DISTILLATION_METHODS:
            return self
        served = [t for t in (self.teacher, *self.teachers) if t.kind != "hf"]
        if served and self.objective.logprob_temperature != 1.0:
            raise ValueError(
                "a served teacher scores prompts at temperature 1 whatever it is asked for "
                "(verl PR 5592): set objective.logprob_temperature to 1, or teacher.kind to 'hf'"
            )
        whole = self.method == "gkd" and self.objective.support == "full"
        if served and (whole or self.method == "entropy_opd"):
            what = "whole distribution" if whole else "entropy"
            raise ValueError(
                f"method '{self.method}' needs the teacher's {what} at every token, which a server "
                "does not return: set teacher.kind to 'hf'"
            )
        top_k = self.method in ("gkd", "trust_region")
        if top_k and any(t.interface != "prompt_logprobs" for t in served):
            raise ValueError(
                f"method '{self.method}' compares top_k ids of the teacher: set teacher.interface "
                "to 'prompt_logprobs'"
            )
        if self.teachers and whole:
            raise ValueError("gkd over the whole vocabulary takes one teacher: remove `teachers`")
        sources = [source for teacher in self.teachers for source in teacher.sources]
        if len(set(sources)) != len(sources):
            raise ValueError("each source may be listed with one of `teachers` only")
        return self

    @property
    def switch_step(self) -> int:
        """First step (from 0) of refinement."""
        chosen = self.objective
        if chosen.phases == "one":
            return 0
        if chosen.switch_step >= 0:
            return chosen.switch_step
        return round(chosen.switch_fraction * self.train.steps)

    @property
    def switches(self) -> bool:
        """Whether the run changes its phase on the way."""
        return self.method == "reopold" and 0 < self.switch_step < self.train.steps

    @property
    def served(self) -> list[ServingConfig]:
        """Where the models run that sample and score: of a method without a teacher, the first."""
        if self.method not in DISTILLATION_METHODS:
            return [self.engine]
        return [self.engine, self.teacher, *self.teachers]

    @property
    def gpus(self) -> int:
        """GPUs of this machine that the run takes: the trainer's and its servers'."""
        return 1 + max((gpu for served in self.served for gpu in served.gpus), default=0)

    @property
    def devices(self) -> int:
        """GPUs that work for the run: its own, and one for each server elsewhere."""
        return self.gpus + sum(len(served.urls) for served in self.served)

    @property
    def samples_per_step(self) -> int:
        return self.sampling.prompts_per_step * self.sampling.rollouts_per_prompt

    def phase(self, step: int) -> str:
        """Name of the phase that step (from 0) belongs to; methods without phases have one."""
        if self.method != "reopold":
            return self.method
        return "exploration" if step < self.switch_step else "refinement"

    def checkpoint_steps(self) -> list[int]:
        """Completed-step counts at which a checkpoint is written, in order."""
        every, last = self.train.checkpoint_every, self.train.steps
        steps = set(range(every, last + 1, every)) | {last}
        if self.switches:
            steps.add(self.switch_step)
        return sorted(steps)

    def with_paths(self, change: Callable[[str], str]) -> Self:
        """This recipe with `change` applied to every local path (hub ids and "" are left alone)."""

        def changed(section: Section, *fields: str) -> Section:
            paths = {field: getattr(section, field) for field in fields}
            local = {field: change(path) for field, path in paths.items() if is_local(path)}
            return section.model_copy(update=local)

        update = {
            "teachers": [changed(teacher, "model") for teacher in self.teachers],
            "model": changed(self.model, "student", "teacher", "reference"),
            "data": changed(self.data, "train").model_copy(
                update={"mix": [changed(other, "train") for other in self.data.mix]}
            ),
            "evaluation": changed(self.evaluation, "data"),
        }
        return self.model_copy(update=update)


def is_local(path: str) -> bool:
    """Whether a checkpoint or data path names a place on disk: it starts with `.`, `/` or `~`.

    Anything else is a hub id, for example `Qwen/Qwen3-0.6B`.
    """
    return path.startswith((".", "/", "~"))


def check_local(name: str, path: str) -> None:
    """Refuse a path, of the key `name`, that :func:`is_local` is not.

    Raises:
        ConfigError: as above.
    """
    if not is_local(path):
        raise ConfigError(
            f"{name} must be a local file, a path starting with . / or ~ (got {path!r})"
        )


def _check_rollback(config: Training) -> None:
    """Refuse a rollback that could not be made. A value that is there already passes: after a
    rollback it is."""
    if not config.health.rolls_back:
        return
    try:
        from reopold.recipes import change  # it reads these models

        # With the default policies, or the check would go round in circles.
        change(config.model_copy(update={"health": HealthConfig()}), config.health.rollback_set)
    except ConfigError as error:
        raise ValueError(str(error)) from error
