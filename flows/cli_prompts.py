"""`reopold prompts`: published prompt sets as the JSONL that recipes read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import Json, Quiet, print_result, shown


def prompts(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Prompt set; without one, all are listed.")
    ] = "",
    given: Annotated[
        Path | None,
        typer.Option("--from", help="Parquet file of the set, or a folder of them."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder [default: .reopold/prompts/NAME]."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a published prompt set and write the JSONL that recipes name as data.train.

    Example:  reopold prompts deepmath
    """
    from reopold.data.published import SOURCES, prepare_prompts
    from tasks.home import home

    if not name:
        listed = {source.name: f"{source.title}, {source.family}" for source in SOURCES.values()}
        print_result(listed, as_json, "\n".join(f"{n:12}{text}" for n, text in listed.items()))
        return
    from tqdm import tqdm

    folder = output or shown(home() / "prompts" / name)
    hidden = True if quiet or as_json else None  # else a bar on terminals, nothing elsewhere
    with tqdm(desc=name, unit="row", disable=hidden) as bar:

        def on_row(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        prepared = prepare_prompts(name, folder, given, on_row)
    text = (
        f"{prepared.prompts:,} prompts ({prepared.left_out:,} rows left out), {prepared.licence}, "
        f"in {prepared.path}"
    )
    print_result(asdict(prepared), as_json, text)
