"""Tool use: maths with a Python interpreter, BFCL's function calls, tau2's mock domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evals.benchmarks.base import Benchmark, Graded, Row, Sampling, Source, Tally, pick
from evals.benchmarks.bfcl import CATEGORIES, bfcl_gold, bfcl_messages, load_bfcl
from evals.benchmarks.bfcl_metrics import COMPOSITES, bfcl_tally
from evals.benchmarks.maths import (
    AIME24,
    AIME25,
    AIME_RULE,
    AMC23,
    GSM8K,
    INTEGER_RULE,
    MATH500,
    asks,
)
from evals.benchmarks.tau2 import load_tau2_mock, tau2_gold, tau2_messages
from reopold.config import ConfigError
from reopold.data.published import BOXED

#: The form of reopold.environments.python, that of ToRA and ToRL.
_PYTHON = (
    "You may run Python code while you solve the problem: write it in a block that begins with "
    "```python and ends with ```, then stop; what it prints is shown to you in a block that begins "
    "with ```output. Variables are kept from one block to the next. When you know the answer, "
    "write it without another block."
)


def _with_python(base: Benchmark, rule: str, *aliases: str) -> Benchmark:
    """The same items and grader, asked with an interpreter at hand."""
    return replace(
        base,
        name=f"{base.name}_python",
        family="tools",
        title=f"{base.title} with Python",
        messages=asks(f"{_PYTHON} {rule}"),
        aliases=(f"{base.name}_tools", *aliases),
        environment="python",
        note="; ".join(
            part for part in (base.note, "only the model's own words are graded") if part
        ),
    )


def _read_bfcl(place: Path) -> list[Row]:
    """Rows of the published folder, or of one of its question files.

    Raises:
        ConfigError: as `load_bfcl`; or a category has more or fewer items than published.
    """
    folder = place if place.is_dir() else place.parent
    names = [place.stem.removeprefix("BFCL_v4_")] if place.is_file() else _categories(folder)
    rows: list[Row] = []
    for name in names:
        found = load_bfcl(folder, (name,))
        if len(found) != CATEGORIES[name]:
            raise ConfigError(
                f"{folder} holds {len(found)} items of BFCL category '{name}'; published are "
                f"{CATEGORIES[name]}"
            )
        rows += found
    return rows


def _categories(folder: Path) -> list[str]:
    """Raises ConfigError: the folder has no file of any category."""
    names = [name for name in CATEGORIES if (folder / f"BFCL_v4_{name}.json").is_file()]
    if not names:
        raise ConfigError(f"{folder} has no files BFCL_v4_<category>.json")
    return names


BFCL = Benchmark(
    name="bfcl",
    family="tools",
    title="BFCL v4 (single turn)",
    source=Source(files=("bfcl_v4", "bfcl_eval/data", "bfcl"), read=_read_bfcl),
    # All categories; non-live; live; the ten that the shared data have; one category alone.
    items=(3641, 1390, 2251, 1554, *sorted(set(CATEGORIES.values()))),
    identify=lambda row: str(pick(row, "id")),
    messages=bfcl_messages,
    gold=bfcl_gold,
    grader="bfcl",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4096),
    tally=bfcl_tally,
    composites=COMPOSITES,
    licence="Apache-2.0",
    aliases=("bfcl_v4", "berkeley_function_calling"),
    note="the AST and (ir)relevance categories, asked by prompt; multi-turn, memory and web search "
    "are not supported. The hub has version 3 only: files are those of bfcl_eval/data",
)


def _read_tau2(place: Path) -> list[Row]:
    """Raises ConfigError: as `load_tau2_mock`."""
    return load_tau2_mock(place if place.is_dir() else place.parent)


def _tau2_tally(graded: Sequence[Graded]) -> Tally:
    """pass^k: the chance that k attempts at a task are all right (tau-bench, arXiv 2406.12045)."""
    from evals.scaling import pass_hat_k

    tally: Tally = {}
    for task in graded:
        n, right = len(task.verdicts), sum(verdict.correct for verdict in task.verdicts)
        for k in range(1, n + 1):
            total, tasks = tally.get(f"pass^{k}", (0.0, 0.0))
            tally[f"pass^{k}"] = (total + pass_hat_k(n, right, k), tasks + 1.0)
    return tally


TAU2_MOCK = Benchmark(
    name="tau2_mock",
    family="tools",
    title="tau2-bench (mock domain, solo)",
    source=Source(
        files=("tau_bench/tau2/mock", "tau2-bench/data/tau2/domains/mock", "tau2_mock"),
        read=_read_tau2,
    ),
    items=(10,),
    identify=lambda row: str(pick(row, "id")),
    messages=tau2_messages,
    gold=tau2_gold,
    grader="tau2",
    sampling=Sampling(max_new_tokens=8192, samples=4),
    metric="pass^1",
    tally=_tau2_tally,
    environment="tau2_mock",
    licence="MIT",
    aliases=("tau2",),
    note="no simulated user: the agent works alone on tickets. 10 tasks, too few to rank models",
)

TOOLS: tuple[Benchmark, ...] = (
    _with_python(AIME24, AIME_RULE),
    _with_python(AIME25, AIME_RULE),
    _with_python(AMC23, INTEGER_RULE),
    _with_python(MATH500, BOXED),
    _with_python(GSM8K, BOXED),
    BFCL,
    TAU2_MOCK,
)
