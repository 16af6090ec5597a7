"""`reopold evaluate` and `reopold grade`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_options import Json, Quiet, print_result, shown
from flows.session import run_flow

if TYPE_CHECKING:
    from reopold.config import EvaluationConfig


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="Hugging Face checkpoint folder.")
    ] = None,
    benchmarks: Annotated[
        str, typer.Option("--benchmarks", "-b", help="Names, for example aime25,math500.")
    ] = "micro_maths",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Test items: a file, its folder, or a folder of benchmarks [default: "
            "$REOPOLD_BENCHMARKS, .reopold/benchmarks, then the hub].",
            metavar="PATH",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples a question [default: the benchmark's].", min=1)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy [default: the benchmark's].", min=0.0, max=2.0)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus [default: the benchmark's].", min=0.01, max=1.0)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of one answer [default: the benchmark's].", min=1)
    ] = None,
    thinking_tokens: Annotated[
        int,
        typer.Option(help="Force a budget of thought (s1), then the answer; 0: none.", min=0),
    ] = 0,
    ignore_end: Annotated[
        int, typer.Option(help='Times that the end of thought becomes "Wait".', min=0)
    ] = 0,
    engine: Annotated[
        str, typer.Option(help="hf, vllm, or the URL of a server (several: comma).")
    ] = "hf",
    rule: Annotated[
        str, typer.Option(help="Grading rule where there are several [default: sound].")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the samples.", min=0)] = 1234,
    limit: Annotated[int, typer.Option(help="Only the first so many items; 0 is all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences sampled together.", min=1)] = 512,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the benchmarks and where their data are.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint on benchmarks: avg@k, pass@k, maj@k and their own, with intervals.

    An interrupted evaluation goes on where it was; every sample is kept as Parquet.

    Example:  reopold evaluate ./Qwen3-1.7B --benchmarks aime25,math500 --samples 32 --engine vllm
    """
    if list_all:
        _list_benchmarks(data, as_json)
        return
    from reopold.config import ConfigError
    from tasks.home import home
    from tasks.preflight import check_evaluations

    if checkpoint is None:
        raise ConfigError("name a CHECKPOINT folder, or --list the benchmarks")
    given = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    fixed = {
        "data": str(data.absolute()) if data else "",
        "rule": rule,
        "seed": seed,
        "limit": limit,
        "thinking_tokens": thinking_tokens,
        "ignore_end": ignore_end,
        "batch_size": batch_size,
        **_engine(engine),
    }
    chosen = _evaluation_settings(benchmarks, given, fixed)
    folder = output or shown(home() / "evaluations" / "-".join(checkpoint.absolute().parts[-3::2]))
    check_evaluations(checkpoint, chosen, folder)

    def run() -> dict[str, Any]:
        from flows.evaluate import evaluate as flow

        found = flow(str(checkpoint), str(folder), chosen, dtype.value)
        return {"results": [results.model_dump(mode="json") for results in found]}

    result = run_flow(run, quiet or as_json)
    scores = "\n".join(_scores_text(each) for each in result["results"])
    print_result(result, as_json, f"{scores}\nresults: {folder}")


def grade(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="Its name: see reopold evaluate --list.")
    ],
    responses: Annotated[
        Path,
        typer.Argument(
            metavar="RESPONSES.jsonl", help='Lines {"record": {...}, "responses": ["...", ...]}.'
        ),
    ],
    rule: Annotated[
        str | None,
        typer.Option(
            help="sound, official or current (what the authors' code does today), legacy (before "
            "it changed) or percent, where the benchmark has them [default: sound]."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of official rules that guess where no answer is found.")
    ] = 42,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="[default: RESPONSES.graded.jsonl beside the input]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade saved outputs from anywhere, without a model.

    A record has the fields of the benchmark's published schema. Verdicts go to
    RESPONSES.graded.jsonl, a line {"id", "verdicts": [{"correct", "extracted", "status"}]} each.

    Example:  reopold grade math500 outputs.jsonl --json
    """
    from evals.saved import grade_file
    from reopold.config import ConfigError

    if not responses.name:
        raise ConfigError(f"{responses} is no file of responses")
    where = output or responses.with_name(f"{responses.stem}.graded.jsonl")
    grades = grade_file(benchmark, responses, where, rule=rule, seed=seed)
    print_result(grades.as_json(), as_json, grades.as_text())


def contrast(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="Folder of results of `reopold evaluate`.")
    ],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another; the teacher's, say.")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations question by question, and the speed-up of the first over the second.

    Paired differences with intervals and p-values (Holm's correction over benchmarks), and how
    many more questions or samples would tell where nothing is decided.

    Example:  reopold contrast .reopold/evaluations/student .reopold/evaluations/teacher
    """
    from dataclasses import asdict

    from evals.contrast import contrast as contrast_folders

    found = contrast_folders(first, second)
    print_result(asdict(found), as_json, found.as_text())


def _list_benchmarks(data: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from evals.benchmarks.catalogue import catalogue
    from flows.terminal import show_benchmarks

    entries = catalogue([data] if data else None)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
    else:
        show_benchmarks(entries)


def _engine(text: str) -> dict[str, Any]:
    """The settings that `--engine` stands for."""
    if text in ("hf", "vllm"):
        return {"engine": text}
    urls = [url.strip() for url in text.split(",")]
    if all(url.startswith(("http://", "https://")) for url in urls):
        return {"engine": "server", "urls": urls}
    from reopold.config import ConfigError

    raise ConfigError(f"--engine is hf, vllm or a URL (http://host:8000), not '{text}'")


def _evaluation_settings(
    names: str, given: dict[str, Any], fixed: dict[str, Any]
) -> list[EvaluationConfig]:
    """Each benchmark's customary settings, with what the user gave instead."""
    from dataclasses import asdict

    from evals.benchmarks import find
    from reopold.config import EvaluationConfig
    from reopold.recipes import parse

    found = list(dict.fromkeys(find(name.strip()).name for name in names.split(",")))
    return [
        parse(
            {
                "benchmark": name,
                **asdict(find(name).sampling),
                **{key: value for key, value in given.items() if value is not None},
                **fixed,
            },
            EvaluationConfig,
            "evaluate",
        )
        for name in found
    ]


def _scores_text(result: dict[str, Any]) -> str:
    """A benchmark's scores, a line each; its reported metric is marked."""
    lines = [f"{result['benchmark']}: n={result['n']}, k={result['k']}"]
    for score in result["scores"]:
        mark = "*" if score["metric"] == result["metric"] else " "
        interval = f"[{score['low']:.3f}, {score['high']:.3f}]"
        name = score["metric"].replace("@k", f"@{score['k']}")
        lines.append(f"{mark} {name:20} {score['value']:.3f} {interval}")
    return "\n".join(lines)
