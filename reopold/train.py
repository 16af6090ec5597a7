"""The trainer process: `python -m reopold.train RUN_DIR [--until STEP]`.

Needs only RUN_DIR/config.json. Finished: returns at once. Else it resumes from the newest
checkpoint that is whole, cuts the logs back to it and goes on, so every way of starting a run is
the same.

Exit codes: 0 done up to --until, 2 bad input (nothing was started), 3 stopped on request, 4 paused
by an alarm (both saved; start it again to go on), 1 failure (see events.jsonl and train.log).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.config import ConfigError, RunConfig
from reopold.data.tokenizers import check_same_tokenizer
from reopold.integrity import faults
from reopold.parent import VARIABLE
from reopold.provenance import check_parents, git_commit, hardware, versions
from reopold.resume import check_recipe, resume_point, roll_back
from reopold.retention import prune
from reopold.run_dir import RunDir, Status, step_of
from reopold.stopping import EXIT_STOPPED, StopFlag, StopRequested

if TYPE_CHECKING:
    from reopold.health import Alarm

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_PAUSED = 1, 2, 4
#: Seconds that a launched trainer waits for one that is saving because its launcher has died.
PREDECESSOR_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How the trainer's work has ended."""

    status: Status
    message: str = ""
    alarm: str = ""
    """Alarm that ended the run for good."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reopold.train",
        description="Train the run in RUN_DIR, or go on where it stopped.",
        epilog="example: python -m reopold.train .reopold/studies/quickstart/runs/reopold-s1",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--until", type=int, help="stop after this many completed steps (default: all)"
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="FIELD",
        help="go on although this field of config.json was changed, for example optimizer.lr",
    )
    options = parser.parse_args(arguments)
    run = RunDir(options.run_dir)
    try:
        config = run.config()
        until = config.train.steps if options.until is None else options.until
        if not 1 <= until <= config.train.steps:
            raise ConfigError(f"--until takes 1 to {config.train.steps} (got {until})")
        with run.lock(PREDECESSOR_SECONDS if VARIABLE in os.environ else 1.0):
            return _train(run, until, options.accept)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:  # a full disk or a read-only folder, before or after the training
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILURE


def _train(run: RunDir, until: int, accept: list[str]) -> int:
    config, point = run.config(), resume_point(run)
    done = step_of(point) if point else 0
    _check_ending(run, config)
    if point is not None and done >= until:
        _settle(run, config, point)
        print(f"{config.name}: {done} of {config.train.steps} steps are done already")
        return 0
    parents = _check(run, config, point, accept)
    stop = StopFlag()
    started = time.monotonic()
    device = pick_device(config)
    before = run.manifest()
    begun, digest = before.get("started_at", time.time()), run.digest()
    run.update_manifest(
        schema=1, name=config.name, method=config.method, seed=config.seed, family=config.family,
        status="running", step=done, steps=config.train.steps, config_digest=digest,
        identity=before.get("identity", f"{digest}@{begun}"), attempt=run.attempt(),
        git_commit=git_commit(), versions=versions(), hardware=hardware(device, config.devices),
        parents=parents, started_at=begun, message="", ended_by="",
    )  # fmt: skip
    try:
        outcome = _run_trainers(run, until, device, stop, point)
    except ConfigError as error:
        run.update_manifest(status="failed", message=str(error))
        raise
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        with suppress(OSError):  # a full disk must not hide what happened
            run.event("failure", run.last_step(), outcome.message)
    with suppress(OSError):
        run.update_manifest(
            status=outcome.status,
            message=outcome.message,
            ended_by=outcome.alarm,
            seconds=before.get("seconds", 0.0) + time.monotonic() - started,
        )
    if outcome.status in ("failed", "paused"):
        print(f"{outcome.status}: {outcome.message}", file=sys.stderr)
    codes = {"failed": EXIT_FAILURE, "paused": EXIT_PAUSED}
    return codes.get(outcome.status, EXIT_STOPPED if stop() and outcome.status == "stopped" else 0)


def _settle(run: RunDir, config: RunConfig, point: Path) -> None:
    """What is left to do for a trainer that was killed after its last checkpoint was whole."""
    done = step_of(point)
    if not any(e["kind"] == "checkpoint" and e["step"] == done for e in run.events()):
        run.cut_back(done, point / "trainer")
        prune(run, config)
    if done == config.train.steps and run.manifest()["status"] != "finished":
        run.event("finish", done, "all steps are done")
        run.update_manifest(status="finished", step=done)


def _check_ending(run: RunDir, config: RunConfig) -> None:
    """Raises ConfigError: an alarm has ended the run, and would still have it so."""
    ended_by = run.manifest().get("ended_by")
    if ended_by and getattr(config.health, ended_by) in ("stop", "rollback"):
        raise ConfigError(
            f"{run.path} was stopped by the alarm {run.manifest()['message']}; to go on all the "
            f"same set health.{ended_by}=warn, with --accept health.{ended_by}"
        )


def _check(run: RunDir, config: RunConfig, point: Path | None, accept: list[str]) -> dict[str, str]:
    """Digests of what the run is made from.

    Raises:
        ConfigError: one of them, or its recipe, is not as it was.
    """
    if point is not None:
        check_recipe(run, point, accept)
    parents = check_parents(run, config)
    for role, path in (("student", config.model.student), ("teacher", config.model.teacher)):
        if role in parents and (Path(path) / "COMPLETE").exists() and (wrong := faults(Path(path))):
            raise ConfigError(f"the {role} {path} is damaged: {wrong[0]}")
    if "teacher" in parents:
        for path in (config.model.teacher, *(teacher.model for teacher in config.teachers)):
            check_same_tokenizer(config.model.student, path)
    return parents


def _run_trainers(
    run: RunDir, until: int, device: str, stop: StopFlag, point: Path | None
) -> Outcome:
    """Train to the end of the stage; each rollback starts over from its checkpoint."""
    import torch

    while True:
        config = run.config()
        torch.set_num_threads(config.train.threads)
        torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
        outcome = _run_trainer(run, config, until, device, stop, point)
        if outcome is not None:
            return outcome
        run.update_manifest(attempt=run.attempt())
        point = resume_point(run)


def _run_trainer(
    run: RunDir, config: RunConfig, until: int, device: str, stop: StopFlag, point: Path | None
) -> Outcome | None:
    """How one trainer ended; None if an alarm has rolled the run back."""
    from reopold.checkpoint import seed_all
    from reopold.trainer import Trainer

    seed_all(config.seed)
    done = step_of(point) if point else 0
    run.cut_back(done, point / "trainer" if point else None)
    run.event("resume" if point else "start", done, f"on {device}, until step {until}")
    print(f"{config.name}: {config.method} from step {done} to {until} on {device}", flush=True)
    try:
        trainer = Trainer(run, config, device, stop, point)
    except StopRequested:
        return _stopped(run, done, "a stop was asked for")
    try:
        trainer.train(until)
    finally:
        trainer.close()
    alarm, done = trainer.alarm, trainer.steps_done
    if alarm is not None and alarm.policy == "rollback":
        if roll_back(run, config, trainer.health, alarm):
            return None
        return Outcome("failed", f"{alarm.message} ({_out_of_rollbacks(config)})", alarm.name)
    if alarm is not None:
        return _ended(run, alarm, done)
    if done == config.train.steps:
        run.event("finish", done, "all steps are done")
        return Outcome("finished")
    return _stopped(run, done, "a stop was asked for" if stop() else "the stage is done")


def _stopped(run: RunDir, done: int, reason: str) -> Outcome:
    run.event("stop", done, f"{reason} after {done} steps")
    return Outcome("stopped")


def _ended(run: RunDir, alarm: Alarm, done: int) -> Outcome:
    """An alarm pauses the run, or ends it for good."""
    message = alarm.sentence
    run.event(alarm.policy, done, f"{message}; after {done} steps")
    if alarm.policy == "pause":
        return Outcome("paused", f"{message}; start the run again to go on")
    return Outcome("failed", message, alarm.name)


def _out_of_rollbacks(config: RunConfig) -> str:
    return f"after {config.health.rollback_limit} rollbacks, or with nothing left to change"


def pick_device(config: RunConfig) -> str:
    """Raises ConfigError where CUDA is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if config.model.device == "cuda" and not available:
        raise ConfigError("model.device is 'cuda' but no GPU is visible; use 'auto' or 'cpu'")
    return "cuda" if available and config.model.device != "cpu" else "cpu"


if __name__ == "__main__":
    code = main()
    if code == EXIT_STOPPED:  # requests to a server that nobody waits for would hold the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
