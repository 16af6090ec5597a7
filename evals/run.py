"""Evaluate checkpoints: `python -m evals.run RUN_DIR`, or one bare checkpoint folder.

    python -m evals.run RUN_DIR [--steps 25,50]
    python -m evals.run --checkpoint FOLDER --config EVALUATIONS_JSON --output FOLDER
    python -m evals.run --scaling STUDY_DIR

The first form evaluates every complete checkpoint of a run by the run's own recipe, the second one
folder on several benchmarks (a folder of results each), the third a study's test-time scaling
experiment (:mod:`evals.scaling.stage`). All keep results that already answer the
question, and samples of an evaluation that was interrupted. Bad input ends with exit code 2 and one
line on stderr.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from evals.evaluation import ensure_results, prepare
from evals.results import SAMPLES_FILE, Results
from evals.scores import Unscored
from reopold.config import ConfigError, EvaluationConfig
from reopold.engines.base import EngineFailure
from reopold.run_dir import RunDir, write_atomic
from reopold.stopping import EXIT_STOPPED, ShouldStop, StopFlag, StopRequested, check, never

if TYPE_CHECKING:
    from evals.harness.engines import Engines


def evaluate_run(
    run: RunDir, steps: Sequence[int] | None = None, should_stop: ShouldStop = never
) -> list[Results]:
    """Bring the results of a run's complete checkpoints up to date on every benchmark of its
    recipe, a line each on stdout.

    Args:
        steps: the checkpoints, by completed steps; None takes all.

    Raises:
        ConfigError: as :func:`evaluate_checkpoint`, or a checkpoint is not there.
        StopRequested: a stop was asked for; the results made so far are kept.
    """
    config = run.config()
    complete = run.complete_checkpoints()
    wanted = complete if steps is None else sorted(set(steps))
    missing = [step for step in wanted if step not in complete]
    if missing or not wanted:
        there = ", ".join(map(str, complete)) or "none"
        asked = f" at step {', '.join(map(str, missing))}" if missing else ""
        gone = sorted(set(missing) & set(run.passed_checkpoints()))
        why = f"; train.keep_last has removed {', '.join(map(str, gone))}" if gone else ""
        raise ConfigError(f"no complete checkpoint{asked} in {run.path} (there: {there}{why})")
    evaluations = [
        prepare(
            settings,
            dtype=config.model.dtype,
            device=config.model.device,
            threads=config.train.threads,
            should_stop=should_stop,
        )
        for settings in config.evaluations
    ]
    found = []
    with _shared_engines(len(evaluations)) as engines:
        for step, evaluation in itertools.product(wanted, evaluations):
            check(should_stop)
            output, folder = run.evaluation(step, evaluation.benchmark.name), run.checkpoint(step)
            results, made = ensure_results(folder, evaluation, output, step, engines=engines)
            print(describe(results, made), flush=True)
            found.append(results)
    return found


@contextmanager
def _shared_engines(benchmarks: int) -> Iterator[Engines | None]:
    """What several benchmarks of a checkpoint share. One alone loads an engine if it needs one:
    results that are there already take no torch to find."""
    if benchmarks == 1:
        yield None
        return
    from evals.harness.engines import Engines

    with Engines() as engines:
        yield engines


def evaluate_folder(arguments: argparse.Namespace, should_stop: ShouldStop) -> None:
    """The second form of the command: every benchmark with the same engine."""
    from evals.harness.engines import Engines

    evaluations = [
        prepare(
            settings,
            dtype=arguments.dtype,
            device=arguments.device,
            threads=arguments.threads,
            should_stop=should_stop,
        )
        for settings in _settings_file(arguments.config)
    ]
    with Engines() as engines:
        for evaluation in evaluations:
            check(should_stop)
            output = arguments.output / evaluation.benchmark.name
            found = ensure_results(arguments.checkpoint, evaluation, output, engines=engines)
            print(describe(*found), flush=True)
            write_curves(output, found[0])


def measure_scaling(study_dir: Path, should_stop: ShouldStop) -> None:
    """The third form of the command."""
    from evals.scaling.stage import plan, run_stage

    def tell(who: str, results: Results, made: bool) -> None:
        print(f"{who} {describe(results, made)}", flush=True)

    run_stage(plan(study_dir), tell, should_stop=should_stop)


def write_curves(folder: Path, results: Results) -> None:
    """scaling.csv and scaling.svg: what more samples a question buy, and at what cost."""
    if results.k == 1 or not results.parameters:
        return
    import pandas as pd

    from evals.scaling.curves import scaling_curve
    from evals.scaling.plots import scaling_plot

    curve = scaling_curve(pd.read_parquet(folder / SAMPLES_FILE), results.parameters)
    curve.to_csv(folder / "scaling.csv", index=False)
    plot = scaling_plot({results.benchmark: curve}, "maj@k")
    write_atomic(folder / "scaling.svg", plot.svg)


def _settings_file(file: Path) -> list[EvaluationConfig]:
    try:
        return TypeAdapter(list[EvaluationConfig]).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigError(f"{file} is no list of evaluation settings: {reason}") from error


def describe(results: Results, made: bool) -> str:
    """One plain line about a checkpoint."""
    spent = f"{results.seconds:.1f} s" if made else "kept"
    return f"step {results.checkpoint_step} {results.benchmark}: {results.headline()} ({spent})"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 without a score, 2 bad input, 3 stopped."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    bare = (arguments.checkpoint, arguments.config, arguments.output)
    forms = (arguments.run_dir is not None, any(bare), arguments.scaling is not None)
    if sum(forms) != 1 or any(bare) != all(bare):
        parser.error("give RUN_DIR, or all of --checkpoint, --config and --output, or --scaling")
    _quiet()
    stop = StopFlag()
    try:
        if arguments.run_dir is not None:
            evaluate_run(RunDir(arguments.run_dir), arguments.steps, stop)
        elif arguments.scaling is not None:
            measure_scaling(arguments.scaling, stop)
        else:
            evaluate_folder(arguments, stop)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Unscored, EngineFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except StopRequested:
        print("stopped: what was evaluated is kept", file=sys.stderr)
        return EXIT_STOPPED
    return 0


def _quiet() -> None:
    """Local files only, and progress bars on a terminal only. Libraries read this when imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evals.run", description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR")
    parser.add_argument("--steps", type=_steps, help="only these checkpoints, for example 25,50")
    parser.add_argument("--checkpoint", type=Path, help="a bare Hugging Face folder")
    parser.add_argument("--config", type=Path, help="JSON list of evaluation settings")
    parser.add_argument("--output", type=Path, help="folder of results.json and samples.parquet")
    parser.add_argument("--scaling", type=Path, metavar="STUDY_DIR", help="a study's experiment")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def _steps(text: str) -> list[int]:
    return [int(step) for step in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
