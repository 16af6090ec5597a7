"""What the commands share: options, and how results are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]


def shown(path: Path) -> Path:
    """Relative to the current directory where that is shorter to read, and the same anywhere."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_result(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, indent=2, sort_keys=True) if as_json else text)


StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or its folder.")]


def study_folder(study: str) -> Path:
    """The folder of a study that is named, or given as a path."""
    from tasks.home import home

    named = shown(home() / "studies" / study)
    return named if named.is_dir() else Path(study)
