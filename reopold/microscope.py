"""Rollouts to read token by token: `python -m reopold.microscope RUN_DIR OUT SETTINGS`.

Samples the student before (as the run began) and after (its last checkpoint) on the same prompts,
scores both with the run's teacher and asks the run's objective what it would keep: the path of a
training step that teaches nothing. The prompts are of those that training had yet to come to.

    OUT/before.jsonl, OUT/after.jsonl    a line a rollout (:func:`reopold.step_records`)
    OUT/about.json                       what they were made from, written last
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reopold.config import ConfigError, RunConfig
from reopold.parent import watch_parent
from reopold.provenance import checkpoint_digest
from reopold.recipes import parse
from reopold.run_dir import Record, RunDir, write_atomic
from reopold.study_config import MicroscopeConfig

if TYPE_CHECKING:  # torch: the flow asks for `about` without it
    from reopold.divergences import TopK
    from reopold.step_buffer import Step
    from reopold.trainer import Trainer

ABOUT = "about.json"


def about(run: RunDir, settings: MicroscopeConfig) -> dict[str, Any]:
    """What the records of a run are made from: where it is the same, they are."""
    config = run.config()
    return {
        "before": checkpoint_digest(Path(config.model.student)),
        "after": checkpoint_digest(run.checkpoint(config.train.steps)),
        "config": run.digest(),
        "settings": settings.model_dump(mode="json", exclude={"arms"}),
    }


def record(run: RunDir, settings: MicroscopeConfig, out: Path) -> None:
    """Write the records of a finished run.

    Raises:
        ConfigError: the run has no teacher, or no last checkpoint.
    """
    config = run.config()
    last = config.train.steps
    if not config.model.teacher:
        raise ConfigError(f"{config.name}: method '{config.method}' has no teacher to read with")
    if last not in run.complete_checkpoints():
        raise ConfigError(f"{config.name} has no checkpoint of step {last}: finish the run first")
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).unlink(missing_ok=True)
    wide, draw = _widened(config, settings), _first_unmet(config, settings)
    for when, point, step in (("before", None, 0), ("after", run.checkpoint(last), last - 1)):
        records, floor = look(run, wide, point, step, draw, settings.alternatives)
        lines = [json.dumps({**each, "floor": floor}) + "\n" for each in records]
        write_atomic(out / f"{when}.jsonl", "".join(lines))
    write_atomic(out / ABOUT, json.dumps(about(run, settings), indent=2, sort_keys=True))


def look(
    run: RunDir, config: RunConfig, point: Path | None, step: int, draw: int, alternatives: int
) -> tuple[list[Record], float | None]:
    """Sample, score and judge some prompts; the records and the reward floor.

    Args:
        point: checkpoint of the student; None: as the run began.
        step: whose phase the objective is in.
        draw: which prompts, as steps of this width would number them.
    """
    import torch

    from reopold.step_buffer import Step
    from reopold.step_records import describe_rollout
    from reopold.train import pick_device
    from reopold.trainer import Trainer

    torch.set_num_threads(config.train.threads)
    trainer = Trainer(run, config, pick_device(config), point=point)
    try:
        drawn = trainer.sampler.draw(draw)
        seen = Step(step, *drawn)
        seen.batch, _ = trainer.signals(seen.prompts, seen.rollouts)
        seen.credit = trainer.objective(seen.batch, step)
        rather = _alternatives(trainer, seen, alternatives)
        records = [
            describe_rollout(seen, i, trainer.tokenizer, rather) for i in range(len(seen.rollouts))
        ]
        return records, trainer.objective.floor
    finally:
        trainer.close()


def _alternatives(trainer: Trainer, step: Step, count: int) -> TopK | None:
    """The teacher's likeliest ids; None where none are asked for or a server would have to be."""
    from reopold.divergences import TopK
    from reopold.rollouts import Needs

    served = [t for t in (trainer.config.teacher, *trainer.config.teachers) if t.kind != "hf"]
    if not count or served or trainer.teacher is None:
        return None
    top = trainer.teacher.score(step.rollouts, Needs(teacher=True, top_k=count)).distribution
    assert isinstance(top, TopK)
    return top


def _widened(config: RunConfig, settings: MicroscopeConfig) -> RunConfig:
    """The run's recipe with a step as wide as what is to be read."""
    size = {
        "prompts_per_step": settings.prompts,
        "rollouts_per_prompt": settings.rollouts,
    }
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=size)})


def _first_unmet(config: RunConfig, settings: MicroscopeConfig) -> int:
    """The first step of the widened recipe that is past all prompts of the run's own steps."""
    return math.ceil(config.train.steps * config.sampling.prompts_per_step / settings.prompts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reopold.microscope", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", help="JSON of a MicroscopeConfig")
    options = parser.parse_args()
    watch_parent(lambda: os._exit(1))
    from reopold.engines.base import EngineFailure

    try:
        settings = parse(json.loads(options.settings), MicroscopeConfig, "settings")
        record(RunDir(options.run_dir), settings, options.out)
    except (ConfigError, EngineFailure, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"rollouts to read: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
