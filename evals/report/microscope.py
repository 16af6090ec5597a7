"""The token microscope: rollouts to look at token by token, in a page that needs nothing else.

The data lie in the page as columns, a group after the other, deflated: a rollout of 25 tokens is
some hundred bytes, and the page unpacks thousands of them in a blink.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from evals.report.tokens import clean
from reopold.data.images import PLACEHOLDER
from reopold.run_dir import Record

_HERE = Path(__file__).parent
#: Bits of a token's flags; microscope_data.js has the same.
KEPT, OBSERVED, CLIPPED = 1, 2, 4
#: In nats; an infinite log-ratio is shown as this.
_LIMIT = 999.0


@dataclass(frozen=True)
class Group:
    """Rollouts that belong together: of one run, at one step, on one set of prompts."""

    label: str
    floor: float | None
    """Of the reward, in nats: a token with R below it is clipped. None: nothing is."""
    records: list[Record]
    """As `describe_rollout` writes them, but images as `data:` addresses; a token may have
    `alternatives`, [text, teacher log-prob] each."""


class _Places:
    """Every text once, in the order met."""

    def __init__(self) -> None:
        self._raw: dict[str, int] = {}
        self._clean: dict[str, int] = {}

    def place(self, text: Any) -> int:
        """-1 for none."""
        if text is None:
            return -1
        text = str(text)
        if text not in self._raw:
            self._raw[text] = self._clean.setdefault(clean(text), len(self._clean))
        return self._raw[text]

    def all(self) -> list[str]:
        return list(self._clean)


def microscope_page(title: str, groups: Sequence[Group]) -> str:
    """The whole page, UTF-8 text; the same groups give the same bytes."""
    return _template().render(
        title=clean(title),
        data=pack(groups),
        styles=_read("report.css") + _read("microscope.css"),
        scripts=[_read(f"microscope{part}.js") for part in ("_data", "", "_detail", "_keys")],
    )


def pack(groups: Sequence[Group]) -> str:
    """The groups as the page holds them: JSON, deflated (zlib has no time stamp), base64."""
    texts, pictures = _Places(), _Places()
    packed = [_group(group, texts, pictures) for group in groups]
    data = {"texts": texts.all(), "pictures": pictures.all(), "groups": packed}
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


def _group(group: Group, texts: _Places, pictures: _Places) -> dict[str, Any]:
    """By column: like lies beside like, which deflates to half of what records do."""
    records, place = group.records, texts.place
    shown = [_pictures(record) for record in records]
    floor = group.floor
    return {
        "label": clean(group.label),
        "floor": floor if floor is None or math.isfinite(floor) else None,
        "prompt": [place(_prompt(record)) for record in records],
        "answer": [place(record.get("answer")) for record in records],
        "reward": [_thousandths(record.get("reward")) for record in records],
        "end": [place(record.get("finish_reason")) for record in records],
        "question": [place(record.get("question_id")) for record in records],
        "environment": [place(record.get("environment") or None) for record in records],
        "pictures": [[pictures.place(each) for each in some] for some in shown],
        "length": [len(_tokens(record)) for record in records],
        **_columns([token for record in records for token in _tokens(record)], floor, texts),
    }


def _columns(tokens: list[Record], floor: float | None, texts: _Places) -> dict[str, Any]:
    """Thousandths of a nat: R rather than the teacher's log-prob, for it has fewer digits."""
    others = [_alternatives(token) for token in tokens]
    flat = [other for some in others for other in some]
    return {
        "text": [texts.place(token.get("text", "")) for token in tokens],
        "reward_of": [_thousandths(_log_ratio(token)) for token in tokens],
        "student": [_thousandths(token.get("student_logprob")) for token in tokens],
        "entropy": [_thousandths(token.get("entropy")) for token in tokens],
        "flags": "".join(str(_flags(token, floor)) for token in tokens),
        "others": [len(some) for some in others] if flat else [],
        "other": [texts.place(text) for text, _ in flat],
        "chance": [chance for _, chance in flat],
    }


def _tokens(record: Record) -> list[Record]:
    return record.get("tokens") or []


def _prompt(record: Record) -> str:
    prompt = str(record.get("prompt", ""))
    return prompt.replace(PLACEHOLDER, "").strip() if record.get("images") else prompt


def _pictures(record: Record) -> list[str]:
    """Nothing is fetched from elsewhere, so whatever is no `data:` picture is left out."""
    images: Iterable[Any] = record.get("images") or []
    return [each for each in images if str(each).startswith("data:image/")]


def _log_ratio(token: Record) -> float | None:
    teacher, student = token.get("teacher_logprob"), token.get("student_logprob")
    if teacher is None or student is None or token.get("observed"):
        return None
    return float(teacher) - float(student)


def _flags(token: Record, floor: float | None) -> int:
    """Clipped is decided here: the page knows R rounded."""
    reward = _log_ratio(token)
    clipped = reward is not None and floor is not None and reward < floor
    kept = bool(token.get("kept", True)) and not token.get("observed")
    return KEPT * kept + OBSERVED * bool(token.get("observed")) + CLIPPED * clipped


def _thousandths(value: Any) -> int | None:
    if value is None or math.isnan(number := float(value)):
        return None
    return round(1000 * max(-_LIMIT, min(_LIMIT, number)))


def _alternatives(token: Record) -> list[tuple[str, int]]:
    """Text and probability in thousandths, likeliest first; what rounds to 0 is left out."""
    some = [(str(text), float(logprob)) for text, logprob in token.get("alternatives") or []]
    known = [(text, logprob) for text, logprob in some if not math.isnan(logprob)]
    ranked = sorted(known, key=lambda each: (-each[1], each[0]))
    chances = [(text, round(1000 * math.exp(min(0.0, logprob)))) for text, logprob in ranked]
    return [each for each in chances if each[1]]


@cache
def _template() -> Template:
    loader = FileSystemLoader(_HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("microscope.html.j2")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
