"""Test-time scaling: what more samples a question buy, and at what cost.

Curves and speed-ups need pandas and are in :mod:`evals.scaling.curves` and `speedup`.
"""

from evals.scaling.estimators import avg_at_k, best_at_k, g_pass_at_k, pass_at_k, pass_hat_k
from evals.scaling.votes import MAX_SUBSETS, Ties, majority_at_k, weighted_majority_at_k

__all__ = [
    "MAX_SUBSETS",
    "Ties",
    "avg_at_k",
    "best_at_k",
    "g_pass_at_k",
    "majority_at_k",
    "pass_at_k",
    "pass_hat_k",
    "weighted_majority_at_k",
]
