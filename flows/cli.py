"""The `reopold` command. Flows are imported when they run: help must answer at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_evaluate import contrast, evaluate, grade
from flows.cli_options import Json, Quiet, StudyName, print_result, shown, study_folder
from flows.cli_prompts import prompts
from flows.cli_report import report
from flows.session import run_flow

if TYPE_CHECKING:
    from reopold.config import RunConfig
    from reopold.preflight import Check

EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="reopold",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Relaxed on-policy distillation (REOPOLD) of reasoning models, beside its baselines.\n\n"
        "Start with:  reopold quickstart\n\n"
        "All state lives under .reopold/ of the current directory (REOPOLD_HOME moves it)."
    ),
)

RECIPES = Path(__file__).resolve().parent.parent / "deployments" / "recipes"
#: What `quickstart --family` runs, each in a study folder of its own.
QUICKSTARTS = {
    "maths": "quickstart.yaml",
    "visual": "quickstart-visual.yaml",
    "tools": "quickstart-tools.yaml",
    "all": "quickstart-all.yaml",
}

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, for example train.steps=50."
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="FIELD",
        help="Go on although this field of the recipe was changed, for example optimizer.lr.",
    ),
]


@app.command()
def quickstart(
    family: Annotated[
        str,
        typer.Option(
            metavar="FAMILY",
            help="What the models learn: maths, visual (pictures), tools (dialogues with a "
            "calculator), or all (one student of the three, mixed).",
        ),
    ] = "maths",
    sets: Sets = None,
    accept: Accept = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a teacher and a student from scratch, distil by every method, compare and report.

    Runs on CPU with no server, hub or GPU. Interrupted or run again, it goes on from what is done.

    Example:  reopold quickstart --family visual --set seeds=[1] --set train.steps=40
    """
    from reopold.config import ConfigError

    if family not in QUICKSTARTS:
        raise ConfigError(f"no family '{family}'; choose one of {', '.join(QUICKSTARTS)}")
    _run_study(RECIPES / QUICKSTARTS[family], sets, accept, quiet, as_json)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Study file (YAML).")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and print its plan; run nothing.")
    ] = False,
    sets: Sets = None,
    accept: Accept = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a study: methods, variants and sweeps x seeds from one base recipe, then its report.

    The plan comes first: runs, samples, hours, disk. Interrupted or run again, it goes on from what
    is done; a seed, a method or a sweep that is added to the file later runs what is new.

    Example:  reopold study deployments/recipes/studies/ablation.yaml --dry-run
    """
    _run_study(file, sets, accept, quiet, as_json, dry_run)


@app.command()
def distill(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe of one run (YAML).")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run directory [default: .reopold/studies/runs/runs/NAME]."
        ),
    ] = None,
    sets: Sets = None,
    accept: Accept = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run one recipe: train phase by phase, evaluate every checkpoint, track in MLflow.

    Example:  reopold distill deployments/recipes/micro.yaml --set method=opd --set name=opd-s7
    """
    from reopold.config import RunConfig
    from reopold.recipes import load_recipe
    from tasks.home import home
    from tasks.preflight import check_run, claim_run

    config = load_recipe(recipe, RunConfig, sets or [])
    run_dir = output or shown(home() / "studies" / "runs" / "runs" / config.name)
    check_run(config, run_dir)
    _preflight(config, run_dir, quiet=True)
    claim_run(config, run_dir, accept or [])

    def run() -> dict[str, Any]:
        from flows.distill import distill as flow

        return {"run_dir": str(run_dir), "checkpoint": flow(config, str(run_dir))}

    result = run_flow(run, quiet or as_json)
    print_result(result, as_json, f"checkpoint: {result['checkpoint']}\n{_tracked(run_dir)}")


@app.command()
def preflight(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe of a run; offline of a study, too.")
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Without GPUs, weights, hub or data; with its cost.")
    ] = False,
    gpu: Annotated[
        str, typer.Option(metavar="GPU", help="offline: a100-80gb, h100 or h200.")
    ] = "h100",
    price: Annotated[
        float | None, typer.Option(help="offline: US dollars a GPU-hour [default: assumed].")
    ] = None,
    response_share: Annotated[
        float, typer.Option(help="offline: mean length of a response, as a share of the longest.")
    ] = 0.6,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Check everything that would waste a GPU hour; exit code 1 if anything fails.

    Tokenizers, vocabularies, templates, EOS, the teacher's server, memory, disk, data, trackers:
    a table of pass, warn and fail, with how to mend it. `distill` does it first.

    Example:  reopold preflight deployments/recipes/paper/tropd/8gpu.yaml --offline --gpu h200
    """
    if offline:
        _preflight_offline(recipe, sets or [], gpu, price, response_share, as_json)
        return
    from reopold.config import RunConfig
    from reopold.recipes import load_recipe
    from tasks.home import home

    config = load_recipe(recipe, RunConfig, sets or [])
    run_dir = shown(home() / "studies" / "runs" / "runs" / config.name)
    _preflight(config, run_dir, quiet=False, as_json=as_json)


app.command()(prompts)
app.command()(evaluate)
app.command()(grade)
app.command()(contrast)
app.add_typer(report, name="report")


@app.command()
def compare(study: StudyName, as_json: Json = False) -> None:
    """Print the methods of a study side by side, with intervals.

    Example:  reopold compare quickstart
    """
    from tasks.home import configure_environment

    configure_environment()
    from tasks.report import compare as compare_study

    compared = compare_study(study_folder(study))
    print_result(compared.summary, as_json, compared.text)


@app.command()
def dashboard(
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's page.")] = 5000,
) -> None:
    """Serve Prefect and MLflow on loopback over the state of .reopold/, until Ctrl-C.

    Example:  reopold dashboard --mlflow-port 5001
    """
    from flows.dashboard import dashboard as serve

    serve(prefect_port, mlflow_port)


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare sizes of checkpoint files, not their SHA-256.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find what a crash or a kill left behind, say what would mend it, and with --fix mend it.

    Runs that nobody trains, broken checkpoints, flow runs without a process, stale slots, orphan
    processes, open MLflow runs, disk use. Whatever is alive is left alone, and nothing is deleted
    that could be wanted. Exit code 1 if faults are left.

    Example:  reopold doctor --fix
    """
    from tasks.home import configure_environment, home

    if not home().is_dir():
        from reopold.config import ConfigError

        raise ConfigError(f"no state at {home()}; go where .reopold is, or set REOPOLD_HOME")
    configure_environment()
    from tasks.alive import join_living_server

    join_living_server()
    from flows.terminal import show_findings
    from tasks.doctor import examine

    found = examine(fix=fix, quick=quick)
    if not as_json:
        show_findings(found.findings)
    print_result(found.model_dump(mode="json"), as_json, found.summary)
    if found.left:
        raise typer.Exit(1)


def _preflight(config: RunConfig, run_dir: Path, *, quiet: bool, as_json: bool = False) -> None:
    """Run the checks and show them; quiet shows only what is amiss.

    Raises:
        PreflightFailed: a check failed.
    """
    from tasks.home import configure_environment
    from tasks.preflight import preflight

    configure_environment()
    _show_checks(preflight(config, run_dir), quiet=quiet, as_json=as_json)


def _preflight_offline(
    file: Path, sets: list[str], gpu: str, price: float | None, share: float, as_json: bool
) -> None:
    from reopold.config import RunConfig
    from reopold.estimate import Assumptions, find_gpu
    from reopold.recipes import is_study, load_recipe
    from reopold.study_config import StudyConfig
    from tasks.offline import preflight_offline, preflight_study_offline

    chosen, assume = find_gpu(gpu, price), Assumptions(response_share=share)
    if is_study(file):
        study = load_recipe(file, StudyConfig, sets)
        found = preflight_study_offline(study, chosen, assume)
    else:
        found = preflight_offline(load_recipe(file, RunConfig, sets), chosen, assume)
    _show_checks(found.checks, quiet=False, as_json=as_json)


def _show_checks(found: list[Check], *, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from flows.terminal import show_checks
    from tasks.preflight import PreflightFailed

    failed = [check for check in found if check.status == "fail"]
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        show_checks([check for check in found if check.status != "pass" or not quiet])
    if failed:
        raise PreflightFailed(f"{len(failed)} of {len(found)} checks failed: nothing was started")


def _run_study(
    file: Path,
    sets: list[str] | None,
    accept: list[str] | None,
    quiet: bool,
    as_json: bool,
    dry_run: bool = False,
) -> None:
    from dataclasses import asdict

    from reopold.recipes import load_recipe
    from reopold.study_config import StudyConfig
    from tasks.home import home
    from tasks.plan import plan_study
    from tasks.preflight import check_study, claim_study

    study = load_recipe(file, StudyConfig, sets or [])
    study_dir = shown(home() / "studies" / study.name)
    check_study(study, study_dir, accept or [])
    plan = plan_study(study, study_dir)
    if not (quiet or as_json):
        from flows.terminal import show_plan

        show_plan(plan, study.name)
    if dry_run:
        print_result({"plan": asdict(plan)}, as_json, "")
        return
    claim_study(study, study_dir, accept or [])

    def run() -> dict[str, Any]:
        from flows.study import study as flow

        return flow(study, str(study_dir)).model_dump(mode="json")

    result = run_flow(run, quiet or as_json)
    text = result["compared"].pop("text")
    text = f"\n{text}\n\nreport: {result['report']}\n{_tracked(study_dir)}"
    print_result(result, as_json, text)


def _tracked(folder: Path) -> str:
    from tasks.report import tracked

    return tracked(folder)


def main() -> None:
    """Entry point; bad input is one clear line and exit code 2."""
    from reopold import parent

    # Prefect's own server, too, is known as ours where we are killed before it.
    os.environ[parent.VARIABLE] = str(os.getpid())
    try:
        app()
    except Exception as error:
        found = _outcome(error)
        if found is None:
            raise
        code, word = found
        print(f"{word}: {error}", file=sys.stderr)
        sys.exit(code)


def _outcome(error: Exception) -> tuple[int, str] | None:
    """Exit code and first word of what is said about it; None for what is our own fault."""
    from evals.scores import Unscored
    from reopold.config import ConfigError
    from tasks.launch import EXIT_INTERRUPTED, EXIT_PAUSED, Interrupted, JobFailed, Paused
    from tasks.preflight import PreflightFailed

    if isinstance(error, ConfigError):
        return EXIT_BAD_INPUT, "error"
    if isinstance(error, Interrupted):
        return EXIT_INTERRUPTED, "stopped"
    if isinstance(error, Paused):
        return EXIT_PAUSED, "paused"
    return (1, "error") if isinstance(error, JobFailed | PreflightFailed | Unscored) else None


if __name__ == "__main__":
    main()
