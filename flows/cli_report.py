"""`reopold report STUDY` and `reopold report verify REPORT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli_options import Json, StudyName, print_result, study_folder


class _StudyOrCommand(TyperGroup):
    """What is no subcommand is a study: `report quickstart` is `report write quickstart`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["write", *args]
        return super().resolve_command(ctx, args)


report = typer.Typer(
    cls=_StudyOrCommand,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help=(
        "Write the report of a study, or check one.\n\n"
        "Example:  reopold report quickstart\n\n"
        "Example:  reopold report verify .reopold/studies/quickstart/report"
    ),
)


@report.command()
def write(study: StudyName, as_json: Json = False) -> None:
    """Write the report of a study (HTML, Markdown, JSON, CSV, SVG) from its run directories.

    Example:  reopold report quickstart
    """
    from tasks.home import configure_environment

    configure_environment()
    from evals.report import build_report

    index = build_report(study_folder(study))
    print_result({"report": str(index)}, as_json, f"report: {index}")


@report.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="REPORT", help="Folder of a report.")],
    study: Annotated[
        Path | None,
        typer.Option(help="Its study [default: the folder above, if that is one].", metavar="DIR"),
    ] = None,
    rerun: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Train this run once more from the start, and say whether it is bit-identical.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every number of a report against the files that it was made from.

    Its files and its evidence by SHA-256, every stored sample graded again, the whole report drawn
    again to the same bytes; where the study is at hand, its files of today, too. Needs no server,
    and of the embedded suite nothing but the folder. Exit code 1 if anything differs.

    Example:  reopold report verify .reopold/studies/quickstart/report --rerun opd-s31
    """
    from dataclasses import asdict

    from tasks.home import configure_environment

    configure_environment()
    from evals.report.verify import verify_report
    from flows.terminal import show_checked

    def tell(text: str) -> None:
        if not as_json:
            typer.echo(text, err=True)

    found = verify_report(folder, study, tell)
    if rerun:
        from tasks.rerun import rerun_check

        found += rerun_check(folder, rerun, tell)
    failed = [each for each in found if each.verdict == "fail"]
    if not as_json:
        show_checked(found)
    text = f"{len(failed)} faults" if failed else "verified: every check that could be made passed"
    print_result({"checks": [asdict(each) for each in found]}, as_json, text)
    if failed:
        raise typer.Exit(1)
