"""What a run has cost so far: counted, so that methods are compared at equal budgets.

A token is a position that a model reads or writes. Sampling reads a prompt once, whatever the
number of its rollouts (prefill), and writes tokens one by one (decode); scoring reads prompt and
response of every rollout in one pass (prefill). An image counts as the positions that it takes in
the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from reopold.bounds import BACKWARD, FORWARD
from reopold.config import RunConfig
from reopold.data.images import prompt_length
from reopold.provenance import parameter_count
from reopold.rollouts import Rollout
from reopold.sampling import Drawn
from reopold.teachers.base import Teacher
from reopold.teachers.local import LocalTeacher
from reopold.teachers.routing import RoutedTeacher
from reopold.vision import Vision


@dataclass
class Costs:
    """Totals since the run began; positions unless said otherwise."""

    samples: int = 0
    """Rollouts that the optimiser saw (supervised: worked solutions)."""
    rollouts: int = 0
    """Rollouts drawn, used or not."""
    prompt_tokens: int = 0
    """Prefill of the sampler."""
    tokens: int = 0
    """Decode: tokens that the student sampled."""
    teacher_tokens: int = 0
    """Prefill of the teachers (and of exopd's reference)."""
    student_tokens: int = 0
    """Prefill of the student: its own scores."""
    update_tokens: int = 0
    """Forward and backward passes of the student."""
    flops: float = 0.0
    """2 x parameters x positions forward, twice that backward; NaN where a teacher's size is not
    known (a hub id that a server serves)."""

    def line(self) -> dict[str, float]:
        """As the step's line of metrics.jsonl has it."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        counted = {name: named.pop(name) for name in ("samples", "tokens")}
        return counted | {f"cost/{name}": value for name, value in named.items()}


@dataclass(frozen=True)
class Scorer:
    """A model that reads whole rollouts, its size and how many positions a prompt takes in it."""

    parameters: float
    vision: Vision | None = None
    """Where it sees: what decides the room that an image takes."""

    def length(self, rollout: Rollout) -> int:
        """Positions of the rollout's prompt."""
        return prompt_length(self.vision, rollout.prompt_ids, rollout.images)


@dataclass
class Meter:
    """Adds up the costs of a run's steps."""

    config: RunConfig
    student: Scorer
    teachers: dict[str, Scorer]
    """By source; "" is the default. Empty: no teacher."""
    reference: Scorer | None = None
    total: Costs = field(default_factory=Costs)

    def count(self, rollouts: Sequence[Rollout], drawn: Drawn) -> None:
        """Add a step: the rollouts that it kept, and what was drawn for it."""
        total, given = self.total, self.config.method == "sft"
        positions = sum(self.student.length(each) + len(each.response_ids) for each in rollouts)
        total.samples += len(rollouts)
        total.update_tokens += positions
        scored = 0 if given else positions * self._own_passes
        kept = self.config.train.keep_activations and not given
        forward = (not kept) + self.config.train.recompute_layers
        flops = (FORWARD * scored + (BACKWARD + FORWARD * forward) * positions) * (
            self.student.parameters
        )
        if not given:
            total.rollouts += drawn.rollouts
            total.prompt_tokens += drawn.prompt_tokens
            total.tokens += drawn.tokens
            total.student_tokens += scored
            flops += FORWARD * self.student.parameters * (drawn.prompt_tokens + drawn.tokens)
        for each in rollouts:
            for scorer in self._scorers(each):
                read = scorer.length(each) + len(each.response_ids)
                total.teacher_tokens += read
                flops += FORWARD * scorer.parameters * read
        total.flops += flops

    @property
    def _own_passes(self) -> int:
        """Times that a step's rollouts are scored by the student."""
        again = self.config.objective.reward_at == "current"
        return 1 + (self.config.train.updates_per_step if again else 0)

    def _scorers(self, rollout: Rollout) -> list[Scorer]:
        teacher = self.teachers.get(rollout.source, self.teachers.get(""))
        return [scorer for scorer in (teacher, self.reference) if scorer is not None]


def teacher_scorers(config: RunConfig, teacher: Teacher | None) -> dict[str, Scorer]:
    """Of every teacher of a run, by source; "" is the default."""
    if teacher is None:
        return {}
    default = teacher.default if isinstance(teacher, RoutedTeacher) else teacher
    found = {"": _scorer(default, config.model.teacher)}
    for each in config.teachers:
        assert isinstance(teacher, RoutedTeacher)
        one = _scorer(teacher.by_source[each.sources[0]], each.model)
        found |= dict.fromkeys(each.sources, one)
    return found


def local_scorer(teacher: LocalTeacher) -> Scorer:
    return Scorer(sum(p.numel() for p in teacher.model.parameters()), teacher.vision)


def _scorer(teacher: Teacher, path: str) -> Scorer:
    if isinstance(teacher, LocalTeacher):
        return local_scorer(teacher)
    return Scorer(parameter_count(path))
