"""The trainer process: `python -m reopold.train RUN_DIR [--until STEP]`.

Needs only RUN_DIR/config.json. Finished: returns at once. Else it resumes from the newest complete
checkpoint, cuts the logs back to it and goes on, so every way of starting a run is the same.

Exit codes: 0 done up to --until, 2 bad input (nothing was started), 3 stopped on request (a
checkpoint was saved), 1 failure (see events.jsonl and train.log).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from reopold.config import ConfigError, RunConfig
from reopold.data.tokenizers import check_same_tokenizer
from reopold.parent import watch_parent
from reopold.provenance import check_parents, git_commit, hardware, versions
from reopold.run_dir import RunDir

if TYPE_CHECKING:
    from reopold.trainer import Trainer

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_STOPPED = 1, 2, 3


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
    options = parser.parse_args(arguments)
    run = RunDir(options.run_dir)
    try:
        config = run.config()
        until = config.train.steps if options.until is None else options.until
        if not 1 <= until <= config.train.steps:
            raise ConfigError(f"--until takes 1 to {config.train.steps} (got {until})")
        with run.lock():
            return _train(run, config, until)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _train(run: RunDir, config: RunConfig, until: int) -> int:
    done = run.complete_checkpoints()
    resume_step = done[-1] if done else 0
    if resume_step >= until:
        if resume_step == config.train.steps:
            run.update_manifest(status="finished", step=resume_step)
        print(f"{config.name}: {resume_step} of {config.train.steps} steps are done already")
        return 0
    parents = check_parents(run, config)
    if "teacher" in parents:
        for path in (config.model.teacher, *(teacher.model for teacher in config.teachers)):
            check_same_tokenizer(config.model.student, path)
    stop = StopRequest()
    started = time.time()
    device = pick_device(config)
    before = run.manifest()
    run.update_manifest(
        schema=1, name=config.name, method=config.method, seed=config.seed, family=config.family,
        status="running", step=resume_step, steps=config.train.steps, config_digest=run.digest(),
        git_commit=git_commit(), versions=versions(), hardware=hardware(device), parents=parents,
        started_at=before.get("started_at", started), message="",
    )  # fmt: skip
    try:
        status = _run_trainer(run, config, until, resume_step, device, stop)
    except ConfigError as error:
        run.update_manifest(status="failed", message=str(error))
        raise
    except Exception as error:
        run.event("failure", int(run.manifest()["step"]), f"{type(error).__name__}: {error}")
        run.update_manifest(status="failed", message=f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return EXIT_FAILURE
    run.update_manifest(status=status, seconds=before.get("seconds", 0.0) + time.time() - started)
    return EXIT_STOPPED if stop.requested and status == "stopped" else 0


def _run_trainer(
    run: RunDir, config: RunConfig, until: int, resume_step: int, device: str, stop: StopRequest
) -> str:
    import torch

    from reopold.trainer import Trainer

    torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    trainer = Trainer(run, config, device, lambda: stop.requested)
    try:
        return _run_steps(run, config, until, resume_step, trainer)
    finally:
        trainer.close()


def _run_steps(
    run: RunDir, config: RunConfig, until: int, resume_step: int, trainer: Trainer
) -> str:
    device, stop = trainer.device, trainer.should_stop
    run.cut_back(resume_step)
    run.event("resume" if resume_step else "start", resume_step, f"on {device}, until step {until}")
    print(
        f"{config.name}: {config.method} from step {resume_step} to {until} on {device}", flush=True
    )
    trainer.train(until)
    if trainer.steps_done == config.train.steps:
        run.event("finish", trainer.steps_done, "all steps are done")
        return "finished"
    reason = "a stop was asked for" if stop() else "the stage is done"
    run.event("stop", trainer.steps_done, f"{reason} after {trainer.steps_done} steps")
    return "stopped"


def pick_device(config: RunConfig) -> str:
    """Raises ConfigError where CUDA is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if config.model.device == "cuda" and not available:
        raise ConfigError("model.device is 'cuda' but no GPU is visible; use 'auto' or 'cpu'")
    return "cuda" if available and config.model.device != "cpu" else "cpu"


class StopRequest:
    """Set by SIGTERM or SIGINT, or when the launching process has died; polled between steps."""

    def __init__(self) -> None:
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
        watch_parent(self._ask)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # a second signal does not wait for the step to end
            os._exit(EXIT_STOPPED)
        self.requested = True

    def _ask(self) -> None:
        self.requested = True


if __name__ == "__main__":
    sys.exit(main())
