"""What the prompts of visual benchmarks have in common.

`<image>` stands where an image belongs; authors who send one image put it before the text.
"""

from __future__ import annotations

import ast

from evals.benchmarks.base import Row, Sampling, pick, user
from reopold.config import ConfigError

#: Greedy, as visual leaderboards sample; room for a thought before the answer.
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4096)


def image(row: Row) -> list[str]:
    """The row's one image: the hub's picture, else the published path."""
    path = row.get("decoded_image") or row.get("image")
    return [str(path)] if path else []


def shown(row: Row, text: str) -> list[dict[str, str]]:
    return user("<image>\n" * len(image(row)) + text)


def options(row: Row) -> list[str]:
    """Options as a list; the hub's MMMU has them as the Python text of one.

    Raises:
        ConfigError: they are neither.
    """
    value = pick(row, "options")
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ConfigError(f"options are no list: {value[:80]}") from error
    if not isinstance(parsed, list):
        raise ConfigError(f"options are no list: {str(value)[:80]}")
    return [str(option) for option in parsed]


def lettered(options: list[str]) -> str:
    return "\n".join(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options))
