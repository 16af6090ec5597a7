"""Log-probs of prompt tokens, as servers return them, into scores. Fails closed.

Axes: N response tokens of the rollouts in order, then time; K likeliest ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reopold.divergences import TopK
from reopold.rewards import MissingScore
from reopold.rollouts import Rollout
from reopold.scoring import Scores

#: vLLM writes -9999 for minus infinity, which JSON cannot hold.
MINUS_INFINITY = -9000.0
#: A log-prob above this is no log-prob: the server returns logits.
POSITIVE = 1e-3

Row = dict[int, float]


def parse_row(row: Mapping[Any, Any]) -> Row:
    """{token id: log-prob} of one position."""
    return {int(token): float(value) for token, value in row.items()}


def response_rows(
    rollout: Rollout, rows: Sequence[Mapping[Any, Any]], scored: Sequence[int], *, who: str
) -> list[Row]:
    """The response's own rows: the last ones, since images take more room than their placeholders.

    Args:
        rows: {token id: log-prob}, of the whole sequence.
        scored: ids of the whole sequence, as the server has scored them.

    Raises:
        MissingScore: rows are missing, or other ids than the response's were scored.
    """
    length = len(rollout.response_ids)
    start = len(scored) - length
    if list(scored[start:]) != rollout.response_ids or (
        not rollout.images and list(scored[:start]) != rollout.prompt_ids
    ):
        raise MissingScore(f"{who} scored other token ids than were sent")
    if len(rows) != len(scored):
        raise MissingScore(f"{who} returned {len(rows)} rows for {len(scored)} prompt tokens")
    return [parse_row(row) for row in rows[start:]]


def collect(
    rollouts: Sequence[Rollout], rows: Sequence[Sequence[Row]], top_k: int, *, who: str
) -> Scores:
    """Scores of the response tokens from what was returned for each.

    Args:
        rows: for every rollout, one row a response token.

    Raises:
        MissingScore: a row or the token's own score is missing, not finite, or no log-prob.
    """
    logprobs: list[float] = []
    for i, (rollout, found) in enumerate(zip(rollouts, rows, strict=True)):
        if len(found) != len(rollout.response_ids):
            raise MissingScore(
                f"{who} returned scores of {len(found)} of {len(rollout.response_ids)} tokens of "
                f"rollout {i}"
            )
        for t, (token, row) in enumerate(zip(rollout.response_ids, found, strict=True)):
            logprobs.append(_own_score(row, token, f"{who}: token {t} of rollout {i}"))
    return Scores(
        torch.tensor(logprobs, dtype=torch.float32),
        None,
        _top_ids([row for found in rows for row in found], top_k, who) if top_k else None,
    )


def _own_score(row: Row, token: int, where: str) -> float:
    if token not in row:
        raise MissingScore(f"{where} (id {token}) has no score; ids {sorted(row)} have")
    value = row[token]
    if not math.isfinite(value) or value <= MINUS_INFINITY:
        raise MissingScore(f"{where} (id {token}) has the score {value}")
    if value > POSITIVE:
        raise MissingScore(
            f"{where} (id {token}) has the score {value}, which is no log-prob: start the server "
            "with --logprobs-mode raw_logprobs"
        )
    return min(value, 0.0)


def _top_ids(rows: Sequence[Row], k: int, who: str) -> TopK:
    """The k likeliest ids of each row; a row may also hold the token's own."""
    ids, logprobs = [], []
    for t, row in enumerate(rows):
        best = sorted(row.items(), key=lambda entry: -entry[1])[:k]
        if len(best) < k or not all(math.isfinite(value) for _, value in best):
            raise MissingScore(f"{who} returned {len(best)} of {k} likeliest ids at token {t}")
        ids.append([token for token, _ in best])
        logprobs.append([value for _, value in best])
    return TopK(torch.tensor(ids).view(-1, k), torch.tensor(logprobs).view(-1, k))
