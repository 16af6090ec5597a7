"""The bins of diagnostics.jsonl, for those who write it and those who draw it. Without torch."""

from __future__ import annotations

#: Bin edges of the reward's histogram, nats: the same at every step, so that steps can be stacked.
REWARD_EDGES: tuple[float, ...] = tuple(-12.0 + 0.25 * i for i in range(65))
#: Below this |R| in nats a token teaches next to nothing.
EPS = 1e-2
#: Equal parts that the tokens are cut into by their entropy.
ENTROPY_PARTS = 10
