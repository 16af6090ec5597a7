"""The scores of the Berkeley Function Calling Leaderboard, v4.

bfcl_eval/eval_checker/eval_runner_helper.py: a category's accuracy; `simple` is the unweighted mean
of the three languages; `non_live_ast` that of simple, multiple, parallel and parallel_multiple;
`live_ast` the mean over the items of the four live categories. Irrelevance is counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from evals.benchmarks.base import Graded, Tally
from evals.benchmarks.bfcl import bfcl_category

_LIVE_AST = {"live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"}
_LANGUAGES = ("simple_python", "simple_java", "simple_javascript")
_OTHERS = ("multiple", "parallel", "parallel_multiple")

#: Composite -> weights of the categories; a score over fewer of them would be another score.
#: `non_live_ast_python` is ours, for suites without Java and JavaScript.
COMPOSITES: dict[str, dict[str, float]] = {
    "simple": dict.fromkeys(_LANGUAGES, 1 / 3),
    "non_live_ast": {**dict.fromkeys(_LANGUAGES, 1 / 12), **dict.fromkeys(_OTHERS, 1 / 4)},
    "non_live_ast_python": dict.fromkeys(("simple_python", *_OTHERS), 1 / 4),
    "irrelevance_all": dict.fromkeys(("irrelevance", "live_irrelevance"), 1 / 2),
}


def bfcl_tally(graded: Sequence[Graded]) -> Tally:
    """The items' shares of right samples, by category and for `live_ast`."""
    tally: Tally = {}
    for item in graded:
        share = sum(verdict.correct for verdict in item.verdicts) / len(item.verdicts)
        category = bfcl_category(item.problem.row)
        for name in [category, *(["live_ast"] if category in _LIVE_AST else [])]:
            right, items = tally.get(name, (0.0, 0.0))
            tally[name] = (right + share, items + 1.0)
    return tally
