"""The token microscope: what lies in the page, and what a browser makes of it."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evals.report import microscope
from evals.report.microscope import CLIPPED, KEPT, OBSERVED, Group, microscope_page, pack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to draw the page")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


def token(text: str, R: float | None = 0.0, **more: Any) -> dict[str, Any]:
    teacher = None if R is None else R - 0.5
    common = {"text": text, "teacher_logprob": teacher, "student_logprob": -0.5}
    return {**common, "entropy": 0.25, "kept": True, **more}


def record(prompt: str, *tokens: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answer": "6",
        "reward": 1.0,
        "finish_reason": "stop",
        "tokens": list(tokens),
        **more,
    }


def groups() -> list[Group]:
    """Before and after: of three prompts the student was right twice and is punished for one."""
    others = [["7", -0.1], ["6", -2.5], ["#", -9.0]]
    before = [
        record("1+5=", token("6", -0.2), token("<eos>", 0.1), question_id="a"),
        record("2*3=", token("=", 0.1), token("6", -4.0, alternatives=others), question_id="b"),
        record("9-8=", token("7", -6.0, kept=False), reward=0.0, question_id="c", answer="1"),
    ]
    after = [
        record("2*3=", token("=", 0.2), token("6!", 1.0), token("\n", -1.0), question_id="b"),
        record("1+5=", token("6", 0.0), token("<eos>", 0.0), question_id="a"),
    ]
    return [Group("student, before", -3.0, before), Group("reopold, after", None, after)]


def unpacked(packed: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(packed)))


# --- what lies in the page ------------------------------------------------------------------


def test_the_same_groups_give_the_same_bytes() -> None:
    page = microscope_page("a study", groups())
    assert page == microscope_page("a study", copy.deepcopy(groups()))
    assert page != microscope_page("a study", groups()[:1])


def test_columns_hold_thousandths_and_flags() -> None:
    tokens = [
        token("6", -3.0004),
        token("tool says", None, observed=True),
        token("7", None, kept=False),
        token("8", float("-inf"), entropy=float("nan")),
    ]
    group = unpacked(pack([Group("g", -3.0, [record("p", *tokens)])]))["groups"][0]
    assert group["reward_of"] == [-3000, None, None, -999_000]
    assert group["student"] == [-500] * 4
    assert group["entropy"] == [250, 250, 250, None]
    # The first is clipped though rounded it lies at the floor.
    assert group["flags"] == f"{KEPT + CLIPPED}{OBSERVED}0{KEPT + CLIPPED}"


def test_alternatives_are_probabilities_likeliest_first() -> None:
    some = [["b", -1.0], ["a", -0.5], ["never", -12.0], ["c", float("nan")]]
    data = unpacked(
        pack([Group("g", None, [record("p", token("x"), token("y", alternatives=some))])])
    )
    group = data["groups"][0]
    assert group["others"] == [0, 2]
    assert [data["texts"][place] for place in group["other"]] == ["a", "b"]
    assert group["chance"] == [607, 368]


def test_a_text_lies_there_once() -> None:
    same = [record("p", token("x"), token("x")) for _ in range(3)]
    data = unpacked(pack([Group("g", None, same), Group("h", None, same)]))
    assert data["texts"].count("x") == 1
    assert data["groups"][1]["text"] == data["groups"][0]["text"]


def test_only_data_pictures_are_taken() -> None:
    images = ["https://example.org/x.png", PIXEL, "/etc/passwd"]
    asked = record("<image> what?", token("x"), images=images)
    data = unpacked(pack([Group("g", None, [asked])]))
    assert data["pictures"] == [PIXEL]
    assert "what?" in data["texts"]


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = microscope_page("a study", groups())
    assert not re.search(r"https?://", page)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"index.html", "data:,"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert "default-src 'none'" in page


def test_markup_in_a_title_is_text() -> None:
    page = microscope_page("</title><img onerror=x>\ud800", [])
    assert "<img onerror" not in page
    page.encode("utf-8")


@pytest.mark.parametrize("many", [200, 1000])
def test_a_rollout_is_small(many: int) -> None:
    rng = random.Random(0)
    texts = [f"w{i}" for i in range(500)]
    drawn = [
        record(
            f"{rng.random()}",
            *(
                token(rng.choice(texts), rng.gauss(0, 1), student_logprob=-rng.expovariate(1))
                | {"entropy": rng.expovariate(1), "kept": rng.random() < 0.5}
                for _ in range(25)
            ),
        )
        for _ in range(many)
    ]
    assert len(pack([Group("g", -3.0, drawn)])) / many < 350


def test_text_stands_out_from_every_colour_behind_it() -> None:
    styles = microscope._read("report.css") + microscope._read("microscope.css")
    light, dark = ({}, {})
    for block in re.findall(r":root \{(.*?)\}", styles, re.DOTALL):
        found = dict(re.findall(r"--([a-z]+): ([^;]+);", block))
        (dark if set(found) & set(light) else light).update(found)
    assert {"seq", "tint", "up", "down", "ink", "soft", "panel"} <= set(light) & set(dark)
    for theme in (light, dark):
        ink, soft, panel, page = (rgb(theme[name]) for name in ("ink", "soft", "panel", "page"))
        tint = float(theme["tint"])
        for name in ("up", "down", "seq"):
            colour = rgb(theme[name])
            behind = tuple(tint * c + (1 - tint) * p for c, p in zip(colour, panel, strict=True))
            assert contrast(ink, behind) >= 4.5, name
        assert contrast(soft, panel) >= 4.5
        assert contrast(soft, page) >= 4.5


def rgb(text: str) -> tuple[float, ...]:
    if text.startswith("#"):
        return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))
    return tuple(float(part) for part in text.split())


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """As WCAG has it."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 255 for c in colour]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# --- what a browser makes of it ---------------------------------------------------------------


class Dom(HTMLParser):
    """Elements with class, attributes and text; enough to ask a dumped page."""

    VOID = ("br", "img", "input", "link", "meta")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()["tag"] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def by_id(self, name: str) -> dict[str, Any]:
        return next(each for each in self.elements if each.get("id") == name)

    def of_class(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.elements if name in (each.get("class") or "").split()]

    def tokens(self) -> list[dict[str, Any]]:
        """Not those of the legend."""
        return [each for each in self.of_class("tk") if "data-k" in each]

    def listed(self) -> list[str]:
        return [each["text"] for each in self.of_class("start")]


def drawn(folder: Path, page: str, address: str = "", keys: str = "") -> Dom:
    """The page as chromium shows it under #address, after `keys` were pressed one by one."""
    press = f"""<script>setTimeout(() => {{ for (const key of {json.dumps(keys.split())})
      (document.activeElement ?? document).dispatchEvent(
        new KeyboardEvent("keydown", {{ key, bubbles: true, cancelable: true }})); }}, 1000);
      </script>"""
    file = folder / "microscope.html"
    file.write_text(page.replace("</body>", f"{press}</body>") if keys else page, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --window-size=1280,900 "
        f"--virtual-time-budget=5000 --user-data-dir={folder / 'chromium'} --dump-dom"
    )
    command = [str(CHROMIUM), *flags.split(), f"{file.as_uri()}#{address}"]
    dumped = subprocess.run(command, capture_output=True, check=True, timeout=120)
    return Dom(dumped.stdout.decode("utf-8"))


@in_browser
def test_the_first_group_is_shown_as_written(tmp_path: Path) -> None:
    dom = drawn(tmp_path, microscope_page("a study", groups()))
    assert dom.by_id("count")["text"] == "3 rollouts, at 1."
    assert dom.listed() == ["1+5=", "2*3=", "9-8="]
    assert [each["text"] for each in dom.tokens()] == ["6", "<eos>"]
    assert [each["data-label"] for each in dom.tokens()] == ["−0.2", "+0.1"]


@in_browser
def test_where_the_teacher_hurts(tmp_path: Path) -> None:
    dom = drawn(tmp_path, microscope_page("a study", groups()), "sort=punished&token=1")
    assert dom.listed() == ["2*3=", "1+5="]
    clipped = dom.tokens()[1]
    assert {"down", "kept", "clipped"} <= set(clipped["class"].split())
    assert clipped["aria-label"] == "“6”, R −4.00, clipped, kept"
    assert clipped["data-label"] == "▼−4.0"
    card = dom.by_id("card")["text"]
    assert "R−4.00 nats" in card
    assert "log p teacher−4.50 (1.1 %)" in card
    assert "▼ clipped at −3.00" in card
    assert "790.5 %68.2 % ◀ sampled" in card


@in_browser
@pytest.mark.parametrize(
    ("colour", "label", "style", "legend"),
    [
        ("entropy", "▼0.3", "seq", "2 nats or more"),
        ("clipped", "▼", "down", "R < −3.00 nats"),
        ("kept", "▼○", None, "left out"),
    ],
)
def test_colour_modes(
    tmp_path: Path, colour: str, label: str, style: str | None, legend: str
) -> None:
    address = f"group=0&colour={colour}&sort=wrong"
    dom = drawn(tmp_path, microscope_page("a study", groups()), address)
    (only,) = dom.tokens()
    assert only["data-label"] == label
    assert set(only["class"].split()) == {"tk", "clipped"} | ({style} if style else set())
    assert legend in dom.by_id("legend")["text"]


@in_browser
def test_the_same_prompt_side_by_side(tmp_path: Path) -> None:
    dom = drawn(tmp_path, microscope_page("a study", groups()), "side=1&rollout=1&pane=1&token=2")
    assert dom.listed() == ["1+5=", "2*3="]  # the third has no partner
    assert [each["aria-label"] for each in dom.of_class("pane")] == [
        "student, before",
        "reopold, after",
    ]
    assert [each["text"] for each in dom.tokens()] == ["=", "6", "=", "6!", "⏎"]
    assert [each["text"] for each in dom.of_class("parting")] == ["6", "6!"]
    assert "reopold, after" in dom.by_id("card")["text"]


@in_browser
def test_search_goes_through_prompts_and_responses(tmp_path: Path) -> None:
    page = microscope_page("a study", groups())
    assert drawn(tmp_path, page, "q=9-8").listed() == ["9-8="]
    none = drawn(tmp_path, page, "q=nowhere")
    assert none.by_id("count")["text"] == "0 of 3 rollouts."
    assert "No rollout to show." in none.by_id("panes")["text"]


@in_browser
def test_keys(tmp_path: Path) -> None:
    page = microscope_page("a study", groups())
    dom = drawn(tmp_path, page, keys="j n")
    assert [e["data-k"] for e in dom.tokens() if e["aria-selected"] == "true"] == ["1"]
    assert dom.by_id("count")["text"] == "3 rollouts, at 2."
    dom = drawn(tmp_path, page, keys="j n n 3 s ?")  # n again: the next-worst is the first
    assert len(dom.of_class("pane")) == 2
    assert "open" in dom.by_id("help")
    pressed = [e for e in dom.elements if e.get("aria-pressed") == "true"]
    assert [each.get("data-mode", each.get("id")) for each in pressed] == ["clipped", "side"]
    dom = drawn(tmp_path, page, keys="j s n n o ArrowRight")
    assert [e["aria-selected"] for e in dom.tokens()] == ["false"] * 3 + ["true", "false"]


@in_browser
def test_hostile_text_is_text(tmp_path: Path) -> None:
    nasty = "</script><img src=x onerror=\"document.title='owned'\">\ud800\x07\u202e"
    asked = record(nasty, token(nasty, -1.0, alternatives=[[nasty, -0.1]]), answer=nasty)
    asked |= {"finish_reason": nasty, "environment": nasty, "question_id": nasty}
    page = microscope_page(nasty, [Group(nasty, -3.0, [asked])])
    dom = drawn(tmp_path, page, "token=0")
    title = next(each for each in dom.elements if each["tag"] == "title")
    assert title["text"].startswith("Token microscope: </script><img")
    assert not [each for each in dom.elements if each["tag"] == "img"]
    shown = nasty[:-3] + "?\ufffd\ufffd"
    assert dom.tokens()[0]["text"] == shown
    assert dom.listed() == [shown]
    assert shown in dom.by_id("card")["text"]


@in_browser
def test_a_dialogue_and_a_picture(tmp_path: Path) -> None:
    tokens = [
        token("call"),
        token("tool ", None, observed=True),
        token("said", None, observed=True),
    ]
    asked = record("<image>?", *tokens, token("6", -1.0), images=[PIXEL], environment="calculator")
    dom = drawn(tmp_path, microscope_page("t", [Group("g", None, [asked])]))
    assert [each["text"] for each in dom.tokens()] == ["call", "6"]
    assert [each["text"] for each in dom.of_class("tool")] == ["tool said"]
    assert [each["src"] for each in dom.elements if each["tag"] == "img"] == [PIXEL]
    assert "with calculator" in dom.by_id("panes")["text"]


@in_browser
def test_of_thousands_only_the_rows_in_sight_exist(tmp_path: Path) -> None:
    many = [record(f"{i}=", token("6", -i / 1000)) for i in range(3000)]
    dom = drawn(tmp_path, microscope_page("t", [Group("g", None, many)]), "rollout=2000")
    assert dom.by_id("count")["text"] == "3,000 rollouts, at 2,001."
    assert "2000=" in dom.listed()
    assert 5 < len(dom.listed()) < 40


@in_browser
@pytest.mark.parametrize("empty", [[], [Group("nothing", None, [])]])
def test_nothing_to_show(tmp_path: Path, empty: list[Group]) -> None:
    dom = drawn(tmp_path, microscope_page("t", empty), "group=7&rollout=9&colour=x&sort=toString")
    assert "rollouts" in dom.by_id("count")["text"]
    assert not dom.tokens()
