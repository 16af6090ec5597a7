"""Alarms: what a run's metrics say about its health. Importable without torch.

An alarm is a function of the metric lines alone, in order. They are cut back on resume, so a run
that was interrupted raises the same alarms as one that was not, without a state of its own.

The first step is the reference for most of them: it is the student as it came, and a run that
collapses at once has no other healthy step. A mean counts as worse only beyond both a margin and
the noise of the steps that it is taken over. docs/health.md gives reasons and sources.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from reopold.config import HealthConfig, Policy, RunConfig
from reopold.run_dir import Record

Name = Literal[
    "entropy_collapse",
    "length_inflation",
    "truncation",
    "repetition",
    "reward_collapse",
    "gradient_spike",
    "sampler_gap",
    "non_finite",
]

#: Standard errors that a mean must be away from its reference.
NOISE = 3.0
#: A smaller fall of the outcome reward is no collapse, whatever share of the reward it is: where
#: one sample in a hundred is right, ten steps without any happen by chance.
LEAST_FALL = 0.05


@dataclass(frozen=True)
class Alarm:
    """An alarm that begins at the line of `step`; `value` is beyond `limit`."""

    name: Name
    step: int
    message: str
    value: float
    limit: float
    policy: Policy

    @property
    def sentence(self) -> str:
        return f"{self.name} at step {self.step}: {self.message}"


@dataclass(frozen=True)
class Condition:
    """What an alarm looks for holds at a line; the last `steps` lines are the evidence."""

    name: Name
    message: str
    value: float
    limit: float
    steps: int = 1


@dataclass(frozen=True)
class Trend:
    """A mean over the window that is worse than its reference by more than `margin`.

    Args:
        sign: 1 where more is worse, -1 where less is.
        margin: of the settings and the reference.
        reference: the first step's value, or the best mean of a window so far.
    """

    name: Name
    metric: str
    sign: Literal[1, -1]
    margin: Callable[[HealthConfig, float], float]
    reference: Literal["first", "best"] = "first"


def reward_margin(settings: HealthConfig, reference: float) -> float:
    return max(LEAST_FALL, (1.0 - settings.reward_share) * reference)


TRENDS = (
    Trend("entropy_collapse", "rollout/entropy", -1, lambda h, x: (1.0 - h.entropy_share) * x),
    Trend("length_inflation", "rollout/length", 1, lambda h, x: (h.length_factor - 1.0) * x),
    Trend("truncation", "rollout/truncated_fraction", 1, lambda h, x: h.truncation_rise),
    Trend("repetition", "rollout/repetition", 1, lambda h, x: h.repetition_rise),
    Trend("reward_collapse", "rollout/reward", -1, reward_margin),
    Trend("reward_collapse", "rollout/reward", -1, reward_margin, reference="best"),
    # Mean R is negative and ends near 0: its best would be a reference that any noise is worse than
    Trend("reward_collapse", "teacher/reward", -1, lambda h, x: (h.teacher_factor - 1.0) * abs(x)),
)


class Series:
    """One metric: its last `window` values, the first one, and the highest mean of a window."""

    def __init__(self, window: int) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.first: float | None = None
        self.best = -math.inf

    def add(self, value: float) -> None:
        if self.first is None:
            self.first = value
        self.recent.append(value)
        if self.full:
            self.best = max(self.best, fmean(self.recent))

    @property
    def full(self) -> bool:
        return len(self.recent) == self.recent.maxlen

    @property
    def change(self) -> float:
        """Of the mean from the first value; to be asked of a full series."""
        assert self.first is not None
        return fmean(self.recent) - self.first

    def noise(self, steps: int) -> float:
        """How far the mean may by chance be from that of `steps` steps like these."""
        return NOISE * stdev(self.recent) * math.sqrt(1 / len(self.recent) + 1 / steps)


class Health:
    """Watches the metric lines of a run; a line costs O(window), whatever came before.

    An alarm begins when its condition holds and ends after `window` lines without: until then it
    does not begin again. So a run that an alarm has paused goes on when it is started again.

    Args:
        history: the lines so far, from the first.
    """

    def __init__(self, config: RunConfig, history: Iterable[Record] = ()) -> None:
        self.settings, self.gap_limit = config.health, config.engine.gap_warn
        self.grad_clip = config.optimizer.grad_clip
        self._series = {trend.metric: Series(self.settings.window) for trend in TRENDS}
        self._phase, self._gradients = "", deque[float](maxlen=self.settings.window)
        self._held: dict[Name, int] = {}  # the last step at which the condition held
        self._ill: set[int] = set()
        for line in history:
            self.observe(line)

    def observe(self, line: Record) -> list[Alarm]:
        """The alarms that begin at `line`, the next one after those seen."""
        step, quiet = int(line["step"]), self.settings.window
        begun = []
        for found in self._conditions(line):
            policy: Policy = getattr(self.settings, found.name)
            if policy == "off":
                continue
            if self._held.get(found.name, -math.inf) < step - quiet:
                begun.append(
                    Alarm(found.name, step, found.message, found.value, found.limit, policy)
                )
            self._held[found.name] = step
            self._ill.update(range(step - found.steps + 1, step))
        if any(held >= step - quiet for held in self._held.values()):
            self._ill.add(step)
        return begun

    def is_healthy_after(self, k: int) -> bool:
        """Whether a checkpoint after `k` completed steps is one to go back to.

        It is not while an alarm lasts, nor within the steps that one was raised from: a mean tells
        of a collapse some steps after it began. The start (k = 0) is always healthy.
        """
        return k - 1 not in self._ill

    def _conditions(self, line: Record) -> Iterator[Condition]:
        numbers = {name: float(x) for name, x in line.items() if isinstance(x, int | float)}
        finite = {name: x for name, x in numbers.items() if math.isfinite(x)}
        if wild := [name for name in numbers if name not in finite]:
            yield Condition("non_finite", f"not finite: {', '.join(wild)}", len(wild), 0.0)
        gap = finite.get("rollout/sampler_gap", 0.0)
        if gap > self.gap_limit:
            yield Condition(
                "sampler_gap",
                f"sampler and trainer differ by {gap:.3g} nats a token on average, more than "
                f"engine.gap_warn ({self.gap_limit:g}); objective.sampler_weights corrects for it",
                gap,
                self.gap_limit,
            )
        if "train/grad_norm" in finite:
            yield from self._spike(finite["train/grad_norm"], str(line.get("phase", "")))
        for metric in self._series.keys() & finite.keys():
            self._series[metric].add(finite[metric])
        for trend in TRENDS:
            if trend.metric in finite and self._series[trend.metric].full:
                yield from self._worse(trend)

    def _spike(self, norm: float, phase: str) -> Iterator[Condition]:
        """Against the median of the steps before, which one outlier does not move. What the
        optimiser takes as it is (optimizer.grad_clip) is none: a model that has learnt all there is
        has small gradients of very different sizes.
        """
        if phase != self._phase:  # refinement learns from fewer tokens: its gradients are others
            self._phase = phase
            self._gradients.clear()
        if len(self._gradients) == self._gradients.maxlen:
            usual = median(self._gradients)
            limit = max(self.settings.gradient_factor * usual, self.grad_clip)
            if usual > 0.0 and norm > limit:
                message = (
                    f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the median of the "
                    f"{len(self._gradients)} steps before"
                )
                yield Condition("gradient_spike", message, norm, limit)
        self._gradients.append(norm)

    def _worse(self, trend: Trend) -> Iterator[Condition]:
        series = self._series[trend.metric]
        assert series.first is not None  # the window is full
        best, window = trend.reference == "best", len(series.recent)
        reference, steps = (series.best, window) if best else (series.first, 1)
        margin, mean = trend.margin(self.settings, reference), fmean(series.recent)
        if trend.sign * (mean - reference) <= margin:
            return
        limit = reference + trend.sign * max(margin, series.noise(steps))
        if trend.sign * (mean - limit) <= 0.0:
            return
        if self._is_learning(trend.name):
            return
        side = "above" if trend.sign > 0 else "below"
        was = f"{reference:.3g} at best" if best else f"{reference:.3g} at the first step"
        message = (
            f"{trend.metric} is {mean:.3g} over {window} steps, {side} {limit:.3g}; it was {was}"
        )
        yield Condition(trend.name, message, mean, limit, window)

    def _is_learning(self, name: Name) -> bool:
        """Whether what looks like an alarm is what the student is to learn: to give long responses
        that end by themselves, or to be as sure as the teacher, who likes its tokens better.
        """
        if name == "length_inflation":
            series, rise = self._series["rollout/truncated_fraction"], self.settings.truncation_rise
            return not (series.full and series.change > rise / 2)
        if name == "entropy_collapse":
            series = self._series["teacher/reward"]
            return series.full and series.change > series.noise(1)
        return False


def alarms(config: RunConfig, lines: Iterable[Record]) -> list[Alarm]:
    """Every alarm that begins in the metric lines of a run, in order."""
    health = Health(config)
    return [alarm for line in lines for alarm in health.observe(line)]
