"""What a study will do, before it does it: runs, samples, hours and disk, less what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reopold.config import ConfigError, RunConfig
from reopold.estimate import GPUS, checkpoints
from reopold.run_dir import RunDir
from reopold.studies import plan_run, plan_supervised, runs_folder, supervised_roles
from reopold.study_config import Arm, StudyConfig
from tasks.offline import needed
from tasks.preflight import checkpoint_bytes, micro_parameters

#: Seconds of one core that a sample of the embedded suite takes, evaluations included, where no run
#: of the study says better (docs/experiments.md, the quickstart's 9 runs).
MICRO_SECONDS = 0.0025
#: The GPU whose hours are told of given models before a run of theirs is finished.
ESTIMATED_FOR = "h100"


@dataclass(frozen=True)
class PlanRow:
    """An arm, or one of the embedded models, over its seeds."""

    arm: str
    method: str
    settings: str
    runs: int
    done: int
    """Runs that are finished."""
    samples: int
    """Of the steps that are left."""
    device_hours: float | None
    """GPU-hours; on the CPU hours of a core. None: not known."""
    disk_bytes: int
    """Of the checkpoints to come."""


@dataclass(frozen=True)
class Plan:
    rows: list[PlanRow]
    estimated: str = ""
    """For which GPU the hours are no more than an estimate; empty where runs have been timed."""

    @property
    def runs(self) -> int:
        return sum(row.runs - row.done for row in self.rows)

    @property
    def samples(self) -> int:
        return sum(row.samples for row in self.rows)

    @property
    def device_hours(self) -> float | None:
        """None where it is not known of an arm."""
        known = [row.device_hours for row in self.rows if row.device_hours is not None]
        return sum(known) if len(known) == len(self.rows) else None

    @property
    def disk_bytes(self) -> int:
        return sum(row.disk_bytes for row in self.rows)


def plan_study(study: StudyConfig, study_dir: Path) -> Plan:
    """What is left of a study to run; nothing is written."""
    pace = _Pace(study, study_dir)
    rows = []
    for role in supervised_roles(study):
        rows.append(pace.row(role, "worked solutions", [plan_supervised(study, study_dir, role)]))
    for arm in study.arms:
        runs = [plan_run(study, study_dir, arm, seed) for seed in arm.seeds]
        rows.append(pace.row(arm.name, _settings(arm), runs))
    return Plan(rows, "" if pace.seconds is not None else f" (estimated, {ESTIMATED_FOR})")


def _settings(arm: Arm) -> str:
    teacher = [f"teacher {arm.teacher}"] if arm.teacher else []
    return ", ".join([*arm.settings, *teacher])


class _Pace:
    """How long runs take: as those of the study that are finished did."""

    def __init__(self, study: StudyConfig, study_dir: Path) -> None:
        self.study, self.folder = study, runs_folder(study_dir)
        self.seconds = MICRO_SECONDS if study.embedded else None
        seconds = samples = 0.0
        for file in sorted(self.folder.glob("*-s*/manifest.json")):
            run = RunDir(file.parent)
            if self._finished(run):
                seconds += float(run.manifest().get("seconds", 0.0))
                samples += run.config().train.steps * run.config().samples_per_step
        if samples:
            self.seconds = seconds / samples

    def row(self, name: str, settings: str, configs: list[RunConfig]) -> PlanRow:
        left = {config.name: self._left(config) for config in configs}
        samples = sum(n * c.samples_per_step for c, n in zip(configs, left.values(), strict=True))
        return PlanRow(
            arm=name,
            method=configs[0].method,
            settings=settings,
            runs=len(configs),
            done=sum(not steps for steps in left.values()),
            samples=samples,
            device_hours=self._hours(configs, left),
            disk_bytes=sum(self._bytes(config) for config in configs if left[config.name]),
        )

    def _hours(self, configs: list[RunConfig], left: dict[str, int]) -> float | None:
        """Of given models, until one of the study's runs is finished, as estimated for the GPU of
        :data:`ESTIMATED_FOR`; None where their sizes are not known."""
        total = 0.0
        for config in configs:
            share = left[config.name] / config.train.steps
            if self.seconds is not None:
                samples = left[config.name] * config.samples_per_step
                total += samples * self.seconds * config.devices / 3600
            elif share:
                try:
                    total += share * needed(config, GPUS[ESTIMATED_FOR]).gpu_hours
                except ConfigError:
                    return None
        return total

    def _left(self, config: RunConfig) -> int:
        """Steps that are not made yet."""
        run = RunDir(self.folder / config.name)
        if self._finished(run):
            return 0
        return config.train.steps - (run.last_step() if run.config_file.exists() else 0)

    def _finished(self, run: RunDir) -> bool:
        return run.config_file.exists() and run.manifest()["status"] == "finished"

    def _bytes(self, config: RunConfig) -> int:
        if not self.study.embedded:
            return checkpoint_bytes(config)
        return checkpoints(config, micro_parameters(self.study.micro))
