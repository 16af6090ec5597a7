"""Alarms: by hand, against a brute force, on recorded runs; and the settings of a rollback."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.config import ConfigError, RunConfig
from reopold.health import Alarm, Health, alarms
from reopold.recipes import changed, load_recipe, parse
from reopold.studies import plan_run, plan_supervised
from reopold.study_config import StudyConfig
from tests.conftest import REPO

Line = dict[str, Any]
#: Metrics of real runs of the quickstart and of collapse.yaml, seed 31 (docs/health.md).
RECORDED = Path(__file__).with_name("health_runs.csv")
MINIMAL: Line = {
    "name": "x",
    "method": "opd",
    "model": {"student": "./s", "teacher": "./t"},
    "data": {"train": "./p.jsonl"},
}


def config(**sections: Any) -> RunConfig:
    return parse({**MINIMAL, **sections}, RunConfig, "recipe")


def lines(steps: int, phase: str = "opd", **metrics: Callable[[int], float]) -> list[Line]:
    """A line a step; `rollout__entropy=f` gives `rollout/entropy` the value f(step)."""
    return [
        {"step": k, "phase": phase}
        | {name.replace("__", "/"): value(k) for name, value in metrics.items()}
        for k in range(steps)
    ]


def after(first: int, before: float, then: float) -> Callable[[int], float]:
    return lambda k: then if k >= first else before


def begun(found: Iterable[Alarm]) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.name) for alarm in found]


@pytest.mark.parametrize(
    ("metrics", "expected", "value", "limit"),
    [
        # A jump is noise until the window holds nothing else: steps 20 to 29.
        ({"rollout__entropy": after(20, 1.0, 0.09)}, (29, "entropy_collapse"), 0.09, 0.1),
        ({"rollout__entropy": after(20, 1.0, 0.11)}, None, 0, 0),
        # As sure as a teacher who likes its tokens better than at the start; or not better.
        (
            {"rollout__entropy": after(20, 1.0, 0.09), "teacher__reward": after(20, -0.4, -0.1)},
            None,
            0,
            0,
        ),
        (
            {"rollout__entropy": after(20, 1.0, 0.09), "teacher__reward": after(20, -0.4, -0.5)},
            (29, "entropy_collapse"),
            0.09,
            0.1,
        ),
        ({"rollout__truncated_fraction": after(20, 0.7, 0.91)}, (29, "truncation"), 0.91, 0.9),
        ({"rollout__truncated_fraction": after(20, 0.7, 0.89)}, None, 0, 0),
        ({"rollout__truncated_fraction": after(1, 0.0, 0.0)}, None, 0, 0),
        ({"rollout__repetition": after(20, 0.1, 0.35)}, (29, "repetition"), 0.35, 0.3),
        ({"rollout__length": after(20, 100.0, 400.0)}, None, 0, 0),  # and they end by themselves
        (
            {
                "rollout__length": after(20, 100.0, 160.0),
                "rollout__truncated_fraction": after(20, 0.0, 0.11),
            },
            (29, "length_inflation"),
            160.0,
            150.0,
        ),
        # The best window is that of steps 10 to 19, not the start.
        (
            {"rollout__reward": lambda k: 0.3 if k < 10 else 0.8 if k < 20 else 0.45},
            (26, "reward_collapse"),
            0.555,
            0.56,
        ),
        ({"rollout__reward": after(20, 0.8, 0.6)}, None, 0, 0),
        ({"rollout__reward": after(1, 0.04, 0.0)}, None, 0, 0),  # rare success, then none
        # It collapses at the first update: only step 0 was healthy. Step 10 is the first window
        # without it.
        ({"rollout__reward": after(1, 0.2, 0.0)}, (10, "reward_collapse"), 0.0, 0.14),
        ({"teacher__reward": after(20, -0.2, -0.61)}, (29, "reward_collapse"), -0.61, -0.6),
        ({"teacher__reward": after(20, -0.2, -0.59)}, None, 0, 0),
        ({"teacher__reward": after(20, -0.2, -0.001)}, None, 0, 0),
        ({"train__grad_norm": after(25, 0.5, 5.1)}, (25, "gradient_spike"), 5.1, 5.0),
        ({"train__grad_norm": after(25, 0.5, 4.9)}, None, 0, 0),
        ({"train__grad_norm": after(25, 0.01, 0.9)}, None, 0, 0),  # below optimizer.grad_clip
        # Step 9 has nothing to be compared with yet.
        ({"train__grad_norm": after(9, 0.5, 50.0)}, (10, "gradient_spike"), 50.0, 5.0),
        ({"train__grad_norm": after(25, 0.0, 5.0)}, None, 0, 0),  # no update before
        ({"rollout__sampler_gap": after(3, 0.01, 0.06)}, (3, "sampler_gap"), 0.06, 0.05),
        ({"rollout__sampler_gap": after(3, 0.01, 0.05)}, None, 0, 0),
        ({"train__loss": after(3, 0.1, math.nan)}, (3, "non_finite"), 1.0, 0.0),
        ({"teacher__reward": after(3, 0.1, -math.inf)}, (3, "non_finite"), 1.0, 0.0),
    ],
)
def test_each_alarm_by_hand(
    metrics: dict[str, Callable[[int], float]],
    expected: tuple[int, str] | None,
    value: float,
    limit: float,
) -> None:
    found = alarms(config(), lines(60, **metrics))
    assert begun(found) == ([expected] if expected else [])
    for alarm in found:
        assert alarm.value == pytest.approx(value) and alarm.limit == pytest.approx(limit)
        assert alarm.policy == "warn" and math.isfinite(alarm.value)


def test_noise_makes_room() -> None:
    """From 0.7 to 0.45 is below 0.7 of the best. With swings of 0.2 the limit falls: at step 28,
    with one value of 0.5, five of 0.6 and four of 0.2, to 0.7 - 3 * 0.2003 * sqrt(1/10 + 1/10)."""

    def history(to: float, swing: float) -> list[Line]:
        level = after(20, 0.7, to)
        return lines(60, rollout__reward=lambda k: level(k) + swing * (-1) ** k)

    assert alarms(config(), history(0.45, 0.2)) == []
    assert begun(alarms(config(), history(0.45, 0.0))) == [(28, "reward_collapse")]
    (found,) = alarms(config(), history(0.40, 0.2))
    assert (found.step, found.value) == (28, pytest.approx(0.43))
    assert found.limit == pytest.approx(0.4313, abs=1e-4)


def test_a_phase_has_gradients_of_its_own() -> None:
    first = lines(30, phase="exploration", train__grad_norm=lambda k: 0.1)
    second = lines(60, phase="refinement", train__grad_norm=lambda k: 20.0 if k == 50 else 1.5)
    assert begun(alarms(config(), [*first, *second[30:]])) == [(50, "gradient_spike")]


def test_an_alarm_is_told_once_for_as_long_as_it_lasts() -> None:
    gap = {3: 0.1, 5: 0.1, 13: 0.1, 24: 0.1}
    told = alarms(config(), lines(40, rollout__sampler_gap=lambda k: gap.get(k, 0.0)))
    assert begun(told) == [(3, "sampler_gap"), (24, "sampler_gap")]  # 14 to 23 were quiet: it ended
    assert "engine.gap_warn (0.05)" in told[0].message


def test_a_policy_is_carried_and_off_looks_away() -> None:
    history = lines(40, rollout__sampler_gap=after(3, 0.0, 0.1))
    (found,) = alarms(config(health={"sampler_gap": "pause"}), history)
    assert found.policy == "pause"
    off = Health(config(health={"sampler_gap": "off"}), history)
    assert all(off.is_healthy_after(k) for k in range(41))


def test_checkpoints_to_go_back_to() -> None:
    """Not those within the window that the alarm came from, nor within what it lasts."""
    health = Health(config(), lines(32, rollout__entropy=after(20, 1.0, 0.01)))
    assert [k for k in range(33) if health.is_healthy_after(k)] == list(range(21))
    instant = Health(config(), lines(40, rollout__sampler_gap=lambda k: 0.1 * (k == 5)))
    assert [k for k in range(41) if not instant.is_healthy_after(k)] == list(range(6, 17))
    assert Health(config()).is_healthy_after(0)


METRICS = {
    "rollout/entropy": 1.0,
    "rollout/length": 50.0,
    "rollout/truncated_fraction": 0.1,
    "rollout/repetition": 0.1,
    "rollout/reward": 0.6,
    "teacher/reward": -0.4,
    "train/grad_norm": 1.0,
    "rollout/sampler_gap": 0.02,
}


def random_history(seed: int, steps: int = 50) -> list[Line]:
    """Metrics that wander, jump between regimes, are absent now and then and sometimes NaN."""
    draw = np.random.default_rng(seed)
    history: list[Line] = []
    level = dict.fromkeys(METRICS, 1.0)
    for k in range(steps):
        line: Line = {"step": k, "phase": "a" if k < 25 else "b"}
        for name, base in METRICS.items():
            if draw.random() < 0.08:
                level[name] = float(draw.choice([0.02, 0.5, 1.0, 3.0, 15.0]))
            if draw.random() > 0.03:
                line[name] = base * level[name] * float(draw.normal(1.0, 0.15))
            if draw.random() < 0.01:
                line[name] = math.nan
        history.append(line)
    return history


def held(recipe: RunConfig, history: list[Line], s: int) -> dict[str, int]:
    """The conditions that hold at line s, and the lines each rests on, from all of the history."""
    health, line, w = recipe.health, history[s], recipe.health.window
    found: dict[str, int] = {}
    seen = defaultdict(list)
    for past in history[: s + 1]:
        for name in METRICS:
            if name in past and math.isfinite(past[name]):
                seen[name].append(past[name])
    if any(isinstance(x, float) and not math.isfinite(x) for x in line.values()):
        found["non_finite"] = 1
    if line.get("rollout/sampler_gap", 0.0) > recipe.engine.gap_warn:
        found["sampler_gap"] = 1
    norms = [
        past["train/grad_norm"]
        for past in history[:s]
        if past["phase"] == line["phase"] and math.isfinite(past.get("train/grad_norm", math.nan))
    ][-w:]
    norm = line.get("train/grad_norm", math.nan)
    if len(norms) == w and norm > max(health.gradient_factor * np.median(norms), 1.0):
        found["gradient_spike"] = 1

    def worse(name: str, sign: int, allowed: float, best: bool = False) -> bool:
        values = np.array(seen[name])
        if not math.isfinite(line.get(name, math.nan)) or len(values) < w:
            return False
        means = np.convolve(values, np.ones(w) / w, "valid")
        reference, count = (means.max(), w) if best else (values[0], 1)
        error = values[-w:].std(ddof=1) * np.sqrt(1 / w + 1 / count)
        if name == "rollout/reward":
            allowed = max(0.05, allowed * reference)
        return bool(sign * (means[-1] - reference) > max(allowed, 3 * error))

    start = {name: values[0] for name, values in seen.items()}
    recent = np.array(seen["rollout/truncated_fraction"][-w:])
    clipped = len(recent) == w and recent.mean() - start["rollout/truncated_fraction"] > 0.1
    liked = np.array(seen["teacher/reward"][-w:])
    room = 3 * liked.std(ddof=1) * np.sqrt(1 / w + 1) if len(liked) == w else math.inf
    pleased = len(liked) == w and liked.mean() - start["teacher/reward"] > room
    if not pleased and worse("rollout/entropy", -1, 0.9 * start.get("rollout/entropy", 0)):
        found["entropy_collapse"] = w
    if clipped and worse("rollout/length", 1, 0.5 * start.get("rollout/length", 0)):
        found["length_inflation"] = w
    if worse("rollout/truncated_fraction", 1, 0.2):
        found["truncation"] = w
    if worse("rollout/repetition", 1, 0.2):
        found["repetition"] = w
    fallen = [worse("rollout/reward", -1, 0.3, best) for best in (False, True)]
    if any(fallen) or worse("teacher/reward", -1, 2 * abs(start.get("teacher/reward", 0))):
        found["reward_collapse"] = w
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.integers(2, 8), cut=st.integers(0, 50))
def test_against_a_brute_force_and_over_a_resume(seed: int, window: int, cut: int) -> None:
    recipe, history = config(health={"window": window}), random_history(seed)
    holds = [held(recipe, history, s) for s in range(len(history))]
    expected = {
        (s, name)
        for s, found in enumerate(holds)
        for name in found
        if not any(name in holds[t] for t in range(max(0, s - window), s))
    }
    whole = alarms(recipe, history)
    assert set(begun(whole)) == expected and len(whole) == len(expected)
    ill = {
        t
        for s, found in enumerate(holds)
        for lines_before in found.values()
        for t in range(s - lines_before + 1, min(s + window, len(history) - 1) + 1)
    }
    resumed = Health(recipe, history[:cut])
    again = [alarm for line in history[cut:] for alarm in resumed.observe(line)]
    assert again == [alarm for alarm in whole if alarm.step >= cut]
    assert {k - 1 for k in range(1, 51) if not resumed.is_healthy_after(k)} == ill - {-1}


def recorded() -> dict[str, list[Line]]:
    runs: dict[str, list[Line]] = defaultdict(list)
    with RECORDED.open(encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            name = row.pop("run")
            numbers = {k: float(v) for k, v in row.items() if v and k not in ("step", "phase")}
            runs[name].append({"step": int(row["step"]), "phase": row["phase"], **numbers})
    return runs


def test_runs_that_learn_raise_no_alarm_and_runs_that_collapse_do() -> None:
    runs = recorded()
    found = {name: begun(alarms(config(), history)) for name, history in runs.items()}
    assert {name: len(history) for name, history in runs.items()} == dict.fromkeys(found, 100)
    healthy = [name for name in found if name.startswith("quickstart/")]
    assert len(healthy) == 3 and all(found[name] == [] for name in healthy)
    first = (10, "reward_collapse")
    assert found["collapse/opd-s31"][:2] == [first, (14, "length_inflation")]
    assert {name for _, name in found["collapse/opd-s31"]} == {
        "reward_collapse", "length_inflation", "truncation", "repetition",
    }  # fmt: skip
    assert found["collapse/reopold-s31"][0] == first


ROLLBACK = {"reward_collapse": "rollback"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=*0.5", "unknown key 'optimizer.lrr': did you mean 'lr'?"),
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr': did you mean 'lr'?"),
        ("optimizer.lr", "write it as key=value"),
        ("optimizer.lr=*half", "write a factor as optimizer.lr=*0.5"),
        ("optimizer.lr=*0", "'optimizer.lr'"),
        ("optimizer.lr=*nan", "'optimizer.lr'"),
        ("optimizer.decay=*2", "'constant' is no number to multiply"),
        ("objective.clip=*2", "True is no number to multiply"),
        ("optimizer=*2", "name a field of 'optimizer'"),
        ("optimizer={lr: 1}", "name a field of 'optimizer'"),
        ("sampling.max_new_tokens=*0.51", "'sampling.max_new_tokens'"),
        ("objective.lam=2", "'objective.lam'"),
        ("name=y", "it names the run"),
        ("method=grpo", "that would be another run"),
        ("seed=4", "which prompts"),
        ("model.teacher=./u", "other models"),
        ("data.train=./q", "which prompts"),
        ("train.steps=*2", "another share of the run"),
        ("train.checkpoint_every=5", "other steps"),
        ("sampling.prompts_per_step=*2", "other samples"),
        ("objective.switch_step=3", "another phase"),
        ("evaluation.samples=2", "could not be compared"),
        ("health.window=20", "must not silence itself"),
        ("teachers=[]", "other teachers"),
    ],
)
def test_a_rollback_that_cannot_be_made_is_refused(override: str, message: str) -> None:
    for kind, rest in ((RunConfig, MINIMAL), (StudyConfig, STUDY)):
        if kind is StudyConfig and override.split(".")[0] in ("method", "seed", "data", "teachers"):
            continue  # a study has no such key
        if kind is StudyConfig and override.startswith("model"):
            continue
        with pytest.raises(ConfigError) as caught:
            parse({**rest, "health": {**ROLLBACK, "rollback_set": [override]}}, kind, "r")
        assert message in str(caught.value)
        # Nobody reads it where no alarm rolls back.
        parse({**rest, "health": {"rollback_set": [override]}}, kind, "r")


STUDY: Line = {"name": "x", "methods": ["opd"], "seeds": [1], "baseline": "opd"}


def test_a_rollback_without_a_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same alarm again"):
        config(health={**ROLLBACK, "rollback_set": []})
    recipe = tmp_path / "r.yaml"
    for override in ("optimizer.lr=*1", "objective.lam=0.3"):
        fields = {**MINIMAL, "health": {**ROLLBACK, "rollback_set": [override]}}
        recipe.write_text(str(fields).replace("'", '"'))
        with pytest.raises(ConfigError, match="would stay as it is"):
            load_recipe(recipe, RunConfig)
        # As it stands after a rollback that set it: no second one, but a recipe all the same.
        again = parse(fields, RunConfig, "r")
        with pytest.raises(ConfigError, match="would stay as it is"):
            changed(again, again.health.rollback_set)


def test_a_rollback_changes_what_it_names_and_can_be_made_again() -> None:
    overrides = [
        "optimizer.lr=*0.5",
        "sampling.max_new_tokens=*2",
        "objective.sampler_weights=token",
    ]
    first = config(optimizer={"lr": 3e-4}, health={**ROLLBACK, "rollback_set": overrides})
    second, change = changed(first, overrides)
    assert change == {
        "optimizer.lr": [3e-4, 1.5e-4],
        "sampling.max_new_tokens": [48, 96],
        "objective.sampler_weights": ["none", "token"],
    }
    expected = first.model_dump()
    expected["optimizer"]["lr"], expected["sampling"]["max_new_tokens"] = 1.5e-4, 96
    expected["objective"]["sampler_weights"] = "token"
    assert second.model_dump() == expected
    third, change = changed(second, overrides[:1])
    assert third.optimizer.lr == 0.75e-4 and change == {"optimizer.lr": [1.5e-4, 0.75e-4]}


def test_a_study_hands_its_alarms_to_its_methods(tmp_path: Path) -> None:
    recipe = REPO / "deployments" / "recipes" / "quickstart.yaml"
    study = load_recipe(recipe, StudyConfig, ["health.window=7", "health.truncation=stop"])
    run = plan_run(study, tmp_path, study.arm("opd"), 31)
    assert (run.health.window, run.health.truncation) == (7, "stop")
    assert plan_supervised(study, tmp_path, "teacher").health.truncation == "warn"
