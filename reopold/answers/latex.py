"""LaTeX as sympy expressions."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    latex2sympy,
)

#: Its default takes R for r.
_CASE_MATTERS = ConversionConfig(lowercase_symbols=False)

#: What the parser cannot read, written as it can.
_READABLE = (
    (re.compile(r"_\s*(?:\{\s*\\odot\s*\}|\\odot(?![a-z]))"), "_{sun}"),
    (re.compile(r"_\s*\{\s*\\(?:text|mathrm)\s*\{\s*(\w+)\s*\}\s*\}"), r"_{\1}"),
    (re.compile(r"_\s*\\(?:text|mathrm)\s*\{\s*(\w+)\s*\}"), r"_{\1}"),
    (re.compile(r"(?<![A-Za-z\\])E(?=\s*_)"), r"\\Xi "),  # E alone is part of numbers to it
    (re.compile(r"\\varnothing(?![a-z])"), r"\\emptyset"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([0-9])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\sqrt\s*([0-9])"), r"\\sqrt{\1}"),
)


@lru_cache(maxsize=1 << 12)
def parse_latex(text: str, real: bool | None = None) -> Any:
    """The expression, set, matrix or relation that LaTeX without `$` stands for; None for what
    cannot be read. Case matters; nothing is evaluated.

    Args:
        real: whether symbols are real numbers; None: nothing is known of them.
    """
    for pattern, replacement in _READABLE:
        text = pattern.sub(replacement, text)
    try:
        return latex2sympy(
            text,
            is_real=real,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CASE_MATTERS,
        )
    except MemoryError:
        raise
    except Exception:  # whatever the parser trips over
        return None
