"""Study files: which runs a study is made of, as frozen pydantic models. Importable without torch.

A study is a list of arms (methods, variants of them, points of sweeps) times seeds, from one base
recipe. An arm is a method with settings, and has a name of its own; a run is named ARM-sSEED.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import Field, model_validator

from reopold.config import (
    DISTILLATION_METHODS,
    ConfigError,
    DataConfig,
    Family,
    Method,
    ModelConfig,
    RunConfig,
    Strict,
    Training,
)
from reopold.recipes import overridden

#: Of arms and of sweeps: legal in folder names, in metric names and in CSS.
NAME = r"^[a-z][a-z0-9_]*$"
#: Runs of a study that are no arm: what every arm starts from, and what it learns from.
REFERENCES = ("student", "teacher")
#: Of a study's folder: where given models have their evaluations.
REFERENCE_FOLDER = "references"


def is_reference(arm: str) -> bool:
    """Whether it is the untaught student or a teacher (`teacher-NAME` of micro.teachers)."""
    return arm in REFERENCES or arm.startswith("teacher-")


def teacher_role(name: str) -> str:
    """Name of the run of one of micro.teachers; "": the study's own."""
    return f"teacher-{name}" if name else "teacher"


class MicroTeacher(Strict):
    """A further teacher of the embedded suite."""

    name: str = Field(pattern=NAME)
    width: int = Field(ge=8, multiple_of=8)
    layers: int = Field(2, ge=1)
    steps: int = Field(400, ge=1)
    lr: float = Field(5e-3, gt=0.0)


class MicroConfig(Strict):
    """The embedded suite: problems, and the two models trained on them from scratch."""

    families: list[Literal["maths", "visual", "tools"]] = Field(["maths"], min_length=1)
    """Kinds of problems; with "visual" the models are vision-language models. Further ones are
    mixed with the first, whose score decides: evaluation.benchmark is its."""
    weights: list[Annotated[float, Field(gt=0.0)]] = []
    """Share of each of the families in every step; empty: equal shares."""
    problems_seed: int = Field(2026, ge=0)
    """Seed of problems, splits and worked solutions."""
    train_problems: int = Field(20_000, ge=1, le=1_000_000)
    test_problems: int = Field(500, ge=1, le=100_000)
    validation_problems: int = Field(500, ge=1, le=100_000)
    missing_skill_wrong: float = Field(0.8, ge=0.0, le=1.0)
    """Share of mistakes in the student's solutions where it lacks the skill: results of `*` by an
    operand of 4 or more; with "visual", digits in diamonds and hexagons that only a picture shows.
    """
    teacher_width: int = Field(96, ge=8, multiple_of=8)
    teacher_layers: int = Field(2, ge=1)
    teacher_steps: int = Field(400, ge=1)
    teacher_lr: float = Field(5e-3, gt=0.0)
    student_width: int = Field(64, ge=8, multiple_of=8)
    student_layers: int = Field(2, ge=1)
    student_steps: int = Field(700, ge=1)
    student_lr: float = Field(5e-3, gt=0.0)
    teachers: list[MicroTeacher] = []
    """Further teachers, of other sizes, for `variants` to learn from."""
    sft_batch: int = Field(64, ge=1)
    """Worked solutions a supervised step."""

    @model_validator(mode="after")
    def _each_family_once(self) -> Self:
        if len(set(self.families)) != len(self.families):
            raise ValueError("families must each be listed once")
        if self.weights and len(self.weights) != len(self.families):
            raise ValueError(
                f"weights must be one for each of the {len(self.families)} families, or none"
            )
        if len({teacher.name for teacher in self.teachers}) != len(self.teachers):
            raise ValueError("micro.teachers must have different names")
        return self

    @property
    def benchmarks(self) -> list[str]:
        """Of the families, in their order."""
        return [f"micro_{family}" for family in self.families]


class ScalingConfig(Strict):
    """Test-time scaling: what more samples a question buy the students, against their teacher."""

    samples: int = Field(0, ge=0)
    """Samples a question of the students' last checkpoints, for maj@k with k up to this; 0: the
    experiment is not made."""
    methods: list[str] = ["reopold", "opd"]
    """Arms whose students are sampled; those that the study does not train are left out."""
    limit: int = Field(0, ge=0)
    """Only the first so many test problems; 0 is all."""


class MicroscopeConfig(Strict):
    """Rollouts to read token by token: the student before and after, on the same prompts."""

    prompts: int = Field(0, ge=0)
    """Training prompts that the runs have not come to; 0: none are drawn."""
    rollouts: int = Field(1, ge=1)
    """Samples a prompt, of the student before and of every arm after."""
    alternatives: int = Field(4, ge=0)
    """Tokens that the teacher would rather have said, written beside each token."""
    arms: list[str] = ["reopold"]
    """Whose last checkpoints, of the first seed; those that the study does not train are left
    out."""


class ChampionConfig(Strict):
    """The rule by which MLflow's registry alias is moved to one checkpoint of the study."""

    alias: str = Field("champion", pattern=r"^[a-z][a-z0-9_-]*$")
    benchmark: str = ""
    """Where it is the best; empty: the study's first benchmark."""
    metric: Literal["avg@k", "pass@k", "maj@k"] = "avg@k"
    checkpoints: Literal["last", "any"] = "last"
    """Only last checkpoints, or any: the best of many is partly luck."""
    arms: list[str] = []
    """Among these; empty: all methods and variants."""


class Variant(Strict):
    """A method with settings of its own, compared with the methods under a name of its own."""

    name: str = Field(pattern=NAME)
    method: Method
    set: list[str] = []
    """Recipe keys as `--set` takes them, for example objective.mask=random."""
    teacher: str = ""
    """One of micro.teachers instead of the study's."""
    label: str = ""
    """In words, for tables and figures; empty: the name."""


class Sweep(Strict):
    """One method over several values of a setting, or of several settings crossed."""

    name: str = Field(pattern=NAME)
    method: Method = "reopold"
    over: list[str] = Field(min_length=1)
    """Keys with their values, for example `objective.lam=[0.05, 0.1, 0.3]`; several are crossed."""
    set: list[str] = []
    """Settings that all its points have."""
    seeds: list[Annotated[int, Field(ge=0)]] = []
    """Empty: those of the study."""


@dataclass(frozen=True)
class Arm:
    """A method with settings. Equal settings are one arm, whatever asks for them.

    Args:
        settings: recipe keys as `--set` takes them.
        teacher: one of micro.teachers; empty: the study's.
        swept: it is compared within a sweep only.
    """

    name: str
    method: Method
    settings: tuple[str, ...] = ()
    teacher: str = ""
    seeds: tuple[int, ...] = ()
    label: str = ""
    swept: bool = False


def run_name(arm: Arm, seed: int) -> str:
    return f"{arm.name}-s{seed}"


@dataclass(frozen=True)
class Point:
    """A point of a sweep: the value of each of its keys, and the arm that has them."""

    values: tuple[Any, ...]
    arm: str


class StudyConfig(Training):
    """Arms x seeds from one base recipe, compared on the same benchmarks."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    """Heading of the report; empty: the name."""
    methods: list[Method] = Field(min_length=1)
    variants: list[Variant] = []
    sweeps: list[Sweep] = []
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    baseline: str = "grpo"
    """Arm whose final score is the target of the sample-efficiency comparison."""
    family: Family = "maths"
    """With `model`: what the prompts are; the embedded suite knows."""
    model: ModelConfig = ModelConfig(student="")
    """Student and teacher of all runs; without a student, the embedded suite's are trained."""
    data: DataConfig = DataConfig(train="")
    """With `model`: the prompts of all runs."""
    sft_data: str = ""
    """With `model`: prompts with worked solutions (`completion`) for the arm `sft`."""
    micro: MicroConfig = MicroConfig()
    scaling: ScalingConfig = ScalingConfig()
    microscope: MicroscopeConfig = MicroscopeConfig()
    champion: ChampionConfig = ChampionConfig()
    published: list[str] = []
    """Benchmarks whose published numbers the report shows (evals/published.yaml); those that the
    study measures are shown in any case."""

    @property
    def embedded(self) -> bool:
        """Whether the models are those of the embedded suite."""
        return not self.model.student

    @property
    def given_models(self) -> dict[str, str]:
        """Paths of the student and of the teacher, if any, that are given; by the role's name."""
        paths = map(os.path.expanduser, (self.model.student, self.model.teacher))
        return {role: path for role, path in zip(REFERENCES, paths, strict=True) if path}

    @property
    def compared(self) -> list[Arm]:
        """Methods, then variants: what the tables and figures show side by side."""
        seeds = tuple(self.seeds)
        named = [Arm(method, method, seeds=seeds) for method in self.methods]
        return named + [
            Arm(each.name, each.method, tuple(each.set), each.teacher, seeds, each.label)
            for each in self.variants
        ]

    @property
    def arms(self) -> list[Arm]:
        """All that is trained: the compared ones, then points of sweeps that none of them is."""
        return list(self._expanded()[0].values())

    def arm(self, name: str) -> Arm:
        return self._expanded()[0][name]

    def points(self, sweep: Sweep) -> list[Point]:
        """Of one of the sweeps, in the order in which it was written."""
        return self._expanded()[1][sweep.name]

    def _expanded(self) -> tuple[dict[str, Arm], dict[str, list[Point]]]:
        arms = {arm.name: arm for arm in self.compared}
        made = {name: self._what_is_trained(arm) for name, arm in arms.items()}
        points: dict[str, list[Point]] = {}
        for sweep in self.sweeps:
            seeds = tuple(sweep.seeds or self.seeds)
            for values, settings in swept(sweep):
                name = f"{sweep.name}-{'-'.join(map(plain, values))}"
                asked = Arm(name, sweep.method, settings, "", seeds, swept=True)
                trained = self._what_is_trained(asked)
                same = next((arms[known] for known, t in made.items() if t == trained), asked)
                if same is not asked:  # trained once: with the seeds of both
                    same = replace(same, seeds=tuple(dict.fromkeys([*same.seeds, *seeds])))
                arms[same.name], made[same.name] = same, trained
                points.setdefault(sweep.name, []).append(Point(values, same.name))
        return arms, points

    def _what_is_trained(self, arm: Arm) -> tuple[RunConfig, str]:
        """Equal for arms that would be the same runs under two names."""
        return self.recipe(arm), arm.teacher

    def recipe(self, arm: Arm) -> RunConfig:
        """The arm's recipe before models and data have their places.

        Raises:
            ConfigError: one of its settings is unknown, or they do not go together.
        """
        needs_teacher = arm.method in DISTILLATION_METHODS
        sections = {*Training.model_fields, "model", "data"}
        raw = self.model_dump(mode="json", include=sections) | {
            "name": "run",
            "method": arm.method,
            "family": self.micro.families[0] if self.embedded else self.family,
        }
        raw["model"]["student"] = self.model.student or "student"
        raw["data"]["train"] = self.data.train or "data"
        if needs_teacher:
            raw["model"]["teacher"] = self.model.teacher or "teacher"
        else:
            raw["model"]["teacher"], raw["teacher"], raw["teachers"] = "", {}, []
        if arm.method == "sft":  # as many worked solutions as the others draw samples
            sampling = raw["sampling"]
            sampling["prompts_per_step"] *= sampling["rollouts_per_prompt"]
            sampling["rollouts_per_prompt"] = 1
        return overridden(raw, RunConfig, arm.settings, f"arm {arm.name}")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (
            ("methods", self.methods),
            ("seeds", self.seeds),
            ("sweeps", [sweep.name for sweep in self.sweeps]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must each be listed once")
        if any(sweep.name in REFERENCES for sweep in self.sweeps):
            raise ValueError(f"no sweep can be called {' or '.join(REFERENCES)}")
        names = [arm.name for arm in self.compared]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two arms are called {', '.join(twice)}: name the variant otherwise")
        taken = [name for name in names if name in REFERENCES]
        if taken:
            raise ValueError(
                f"no arm can be called {taken[0]}: that is the run all are held against"
            )
        return self

    @model_validator(mode="after")
    def _arms_can_be_made(self) -> Self:
        names = [arm.name for arm in self.compared]
        if self.baseline not in names and self.baseline not in get_args(Method):
            raise ValueError(f"baseline '{self.baseline}' is no arm: one of {', '.join(names)}")
        known = {teacher.name for teacher in self.micro.teachers}
        for variant in self.variants:
            if variant.teacher and variant.teacher not in known:
                raise ValueError(
                    f"variant '{variant.name}': no teacher '{variant.teacher}' in micro.teachers"
                )
        try:
            self._expanded()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _models_have_their_data(self) -> Self:
        evaluation = self.evaluation
        if not self.embedded:
            if not self.data.train:
                raise ValueError("data.train is missing: the prompts for model.student")
            if "sft" in self.methods and not self.sft_data:
                raise ValueError("arm 'sft' needs sft_data: prompts with worked solutions")
            return self
        if evaluation.data:
            raise ValueError(
                "evaluation.data is not for a study to set: its test problems are drawn"
            )
        first, *others = self.micro.benchmarks
        if evaluation.benchmark != first or sorted(evaluation.also) != sorted(others):
            raise ValueError(
                f"a study of {', '.join(self.micro.families)} is evaluated on its own problems "
                f"(got {', '.join(evaluation.benchmarks)}): set "
                f"evaluation.benchmark={first} and evaluation.also=[{', '.join(others)}]"
            )
        return self

    @model_validator(mode="after")
    def _scaling_draws(self) -> Self:
        if self.scaling.samples and not self.evaluation.temperature:
            raise ValueError(
                "scaling.samples draws many samples a question: with evaluation.temperature 0 "
                "they would all be the same"
            )
        return self


def swept(sweep: Sweep) -> list[tuple[tuple[Any, ...], tuple[str, ...]]]:
    """Values and settings of every point of a sweep.

    Raises:
        ValueError: an entry of `over` is not KEY=[VALUE, ...].
    """
    keys, choices = [], []
    for entry in sweep.over:
        key, _, text = entry.partition("=")
        values = yaml.safe_load(text) if text else None
        if not key or not isinstance(values, list) or not values:
            raise ValueError(
                f"sweep '{sweep.name}': write {entry!r} as key=[value, value], for example "
                "objective.lam=[0.1, 0.3]"
            )
        keys.append(key)
        choices.append(values)
    return [
        (values, (*sweep.set, *(f"{k}={_written(v)}" for k, v in zip(keys, values, strict=True))))
        for values in itertools.product(*choices)
    ]


def sweep_keys(sweep: Sweep) -> list[str]:
    return [entry.partition("=")[0] for entry in sweep.over]


def plain(value: Any) -> str:
    """A value as a part of a run's name: `0.3`, `entropy`, `true`."""
    text = _written(value)
    return "".join(c if c.isalnum() or c in "._" else "_" for c in text)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
