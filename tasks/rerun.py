"""Training one run of a report again from nothing, to see whether the bits are the same.

Of the embedded suite everything is made again: problems, untrained models, teacher, student, the
run. Where the models are given, they are taken from where the recipe has them.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from evals.report.evidence import EVIDENCE, unpack
from evals.report.verify import Checked, Tell
from evals.scaling.stage import study_config
from reopold.config import ConfigError, RunConfig
from reopold.provenance import checkpoint_digest, versions
from reopold.run_dir import RunDir, read_lines, write_atomic
from reopold.studies import (
    micro_folder,
    plan_run,
    plan_supervised,
    runs_folder,
    supervised_roles,
)
from reopold.study_config import StudyConfig, run_name
from tasks.launch import run_module

#: Of a step's line: what a clock decides.
_CLOCK = ("time", "perf/")


def rerun_check(report: Path, name: str, tell: Tell) -> list[Checked]:
    """Train run `name` of the study again in a temporary folder, and compare.

    Raises:
        ConfigError: the study has no such run, or the report no evidence.
    """
    with tempfile.TemporaryDirectory(prefix="reopold-rerun-") as temporary:
        stored, again = Path(temporary) / "stored", Path(temporary) / "again"
        if not (report / EVIDENCE).exists():
            raise ConfigError(f"{report} holds no {EVIDENCE}: there is no {name} to compare with")
        unpack(report, stored)
        study = study_config(stored)
        for config in _chain(study, again, name):
            tell(f"rerun: {config.name}, {config.train.steps} steps")
            run = RunDir(runs_folder(again) / config.name).create(config)
            run_module("reopold.train", str(run.path), log=run.path / "rerun.log")
        return _compared(RunDir(runs_folder(stored) / name), RunDir(runs_folder(again) / name))


def _chain(study: StudyConfig, folder: Path, name: str) -> Iterator[RunConfig]:
    """The runs to train, the wanted one last; the suite is written on the way."""
    runs = {run_name(arm, seed): (arm, seed) for arm in study.arms for seed in arm.seeds}
    if name not in runs and name not in supervised_roles(study):
        raise ConfigError(f"no run '{name}' in the study: one of {', '.join(runs)}")
    if study.embedded:
        recipe = folder / "micro.config.json"
        folder.mkdir(parents=True)
        write_atomic(recipe, study.micro.canonical_json())
        run_module(
            "reopold.micro", str(micro_folder(folder)), str(recipe), log=folder / "micro.log"
        )
        for role in supervised_roles(study):
            yield plan_supervised(study, folder, role)
    if name in runs:
        yield plan_run(study, folder, *runs[name])


def _compared(stored: RunDir, again: RunDir) -> list[Checked]:
    """Checkpoints by digest, metrics number by number."""
    name = stored.path.name
    steps = sorted(
        int(file.parent.parent.name.removeprefix("step-"))
        for file in stored.path.glob("eval/*/*/results.json")
    )
    digests = {step: _evaluated_digest(stored, step) for step in dict.fromkeys(steps)}
    other = [s for s, d in digests.items() if checkpoint_digest(again.checkpoint(s)) != d]
    worst, where = _largest_difference(stored, again)
    if not other and not worst:
        said = f"bit-identical: {len(digests)} evaluated checkpoints and every metric of every step"
        return [Checked("rerun", "pass", name, said)]
    theirs, ours = stored.manifest().get("versions", {}), versions()
    changed = [f"{k} {v} then, {ours.get(k)} now" for k, v in theirs.items() if ours.get(k) != v]
    software = f"; other software: {', '.join(changed)}" if changed else ""
    said = (
        f"not bit-identical: {len(other)} of {len(digests)} evaluated checkpoints differ; the "
        f"largest relative difference of a metric is {worst:.3g} ({where}){software}"
    )
    return [Checked("rerun", "fail", name, said)]


def _evaluated_digest(run: RunDir, step: int) -> str:
    file = next(run.path.glob(f"eval/step-{step:06d}/*/results.json"))
    return str(json.loads(file.read_text(encoding="utf-8"))["checkpoint_digest"])


def _largest_difference(stored: RunDir, again: RunDir) -> tuple[float, str]:
    """Largest relative difference of a metric, and its name and step."""
    worst, where = 0.0, ""
    ours = {line["step"]: line for line in read_lines(again.metrics_file)}
    for line in read_lines(stored.metrics_file):
        there = ours.get(line["step"], {})
        for key, value in line.items():
            if key.startswith(_CLOCK) or not isinstance(value, float):
                continue
            found = there.get(key, math.nan)
            gap = abs(found - value) / max(abs(value), 1e-12) if found != value else 0.0
            if math.isnan(gap):
                gap = math.inf
            if gap > worst:
                worst, where = gap, f"{key} at step {line['step']}"
    return worst, where
