"""The test-time scaling experiment of a study: many samples a question of its last checkpoints.

    STUDY/scaling/WHO/BENCHMARK/{results.json, samples.parquet}

WHO is the student before, the teacher (runs of their own, or models that were given), and the runs
of the methods that `scaling.methods` names, every seed. All are sampled one after another in one
process, with the same batch size, so that their times can be compared: the `seconds` of a sample
are its batch's wall-clock divided by the samples of the batch (elsewhere they are the time until
that sample was done). A few samples that are not kept warm a checkpoint up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.evaluation import ensure_results, prepare
from evals.results import Results, read_results
from reopold.config import ConfigError, EvaluationConfig, RunConfig
from reopold.integrity import COMPLETE
from reopold.provenance import checkpoint_digest
from reopold.recipes import parse
from reopold.run_dir import RunDir, read_object
from reopold.stopping import ShouldStop, check, never
from reopold.study_config import REFERENCES, StudyConfig, run_name

FOLDER = "scaling"
#: WHO, its checkpoint, its step and the recipe that it is sampled by.
Sampled = tuple[str, Path, int | None, RunConfig]


@dataclass(frozen=True)
class Measured:
    """One checkpoint on one benchmark, many samples a question."""

    who: str
    checkpoint: Path
    step: int | None
    """None: a model that was given, of whose training nothing is known."""
    config: RunConfig
    """Of the run, or for a given model of the study's first arm: dtype, device, threads."""
    settings: EvaluationConfig
    output: Path

    def ready(self) -> bool:
        """Whether the checkpoint is there."""
        return self.step is None or (self.checkpoint / COMPLETE).exists()

    def done(self) -> bool:
        """Whether disk holds results for the checkpoint, problems and settings of today."""
        there = read_results(self.output)
        if there is None or not self.ready():
            return False
        problems = prepare(self.settings).problems.digest
        dtype = self.config.model.dtype
        return there.answers(checkpoint_digest(self.checkpoint), problems, self.settings, dtype)


def study_config(study_dir: Path) -> StudyConfig:
    """The study.json of a study's folder.

    Raises:
        ConfigError: there is none, it is not JSON, or it is not a StudyConfig.
    """
    file = study_dir / "study.json"
    raw = read_object(file, f"{study_dir} holds no study.json: it is no study folder")
    return parse(raw, StudyConfig, str(file))


def plan(study_dir: Path) -> list[Measured]:
    """What the experiment of a study samples, in order; nothing where the study asks for none.

    Raises:
        ConfigError: there is no readable study.json, or a run that is wanted is not there.
    """
    study = study_config(study_dir)
    wanted = study.scaling
    if not wanted.samples:
        return []
    arms = [arm for arm in study.compared if arm.name in wanted.methods]
    names = [run_name(arm, seed) for arm in arms for seed in study.seeds]
    trained = [
        _trained(study_dir, who) for who in ([*REFERENCES, *names] if study.embedded else names)
    ]
    found = []
    for who, checkpoint, step, config in [*_given(study), *trained]:
        for each in config.evaluations:
            settings = each.model_copy(update={"samples": wanted.samples, "limit": wanted.limit})
            output = study_dir / FOLDER / who / each.benchmark
            found.append(Measured(who, checkpoint, step, config, settings, output))
    return found


def _trained(study_dir: Path, who: str) -> Sampled:
    """A run's last checkpoint."""
    run = RunDir(study_dir / "runs" / who)
    config = run.config()
    return who, run.checkpoint(config.train.steps), config.train.steps, config


def _given(study: StudyConfig) -> list[Sampled]:
    """Student and teacher of a study whose models are given; a study of grpo has no teacher."""
    if study.embedded:
        return []
    config = study.recipe(study.compared[0]).with_paths(os.path.expanduser)
    return [(who, Path(path), None, config) for who, path in study.given_models.items()]


def run_stage(
    measured: Sequence[Measured], tell: Callable[[str, Results, bool], None], *,
    should_stop: ShouldStop = never,
) -> None:  # fmt: skip
    """Bring the results of every checkpoint up to date; `tell` hears of each, and if it was made.

    Raises:
        ConfigError: a checkpoint is not complete, or as :func:`evals.evaluation.ensure_results`.
        StopRequested: a stop was asked for; the samples drawn so far are kept.
    """
    for each in measured:
        if not each.ready():
            raise ConfigError(
                f"{each.who} has no checkpoint of step {each.step}, which the scaling experiment "
                "samples: finish the run first"
            )
    from evals.scaling.timed import TimedEngines  # torch and lm-eval: seconds to import

    with TimedEngines() as engines:
        for each in measured:
            check(should_stop)
            evaluation = prepare(
                each.settings,
                dtype=each.config.model.dtype,
                device=each.config.model.device,
                threads=each.config.train.threads,
                should_stop=should_stop,
            )
            results, made = ensure_results(
                each.checkpoint, evaluation, each.output, each.step, engines=engines
            )
            tell(each.who, results, made)
