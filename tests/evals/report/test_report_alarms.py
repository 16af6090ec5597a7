"""The report's word on the runs' health."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic import Synthetic

from evals.report import build_report
from reopold.run_dir import RunDir

Make = Callable[[Synthetic], Path]
WHAT = Synthetic(methods=("opd", "grpo"), seeds=(1, 2))
ALARM: dict[str, Any] = {"alarm": "truncation", "policy": "warn", "value": 0.4, "limit": 0.25}
COLLAPSE = {"alarm": "reward_collapse", "policy": "rollback", "value": 0.1, "limit": 0.3}


def written(folder: Path) -> tuple[str, list[list[str]], list[dict[str, Any]]]:
    """Text of the Health section, its table's rows, and the alarms in report.json."""
    build_report(folder)
    markdown = (folder / "report/report.md").read_text(encoding="utf-8")
    section = markdown.split("## Health\n")[1].split("\n## ")[0]
    cells = [re.split(r" \| ", line[2:-2]) for line in section.splitlines() if line[:1] == "|"]
    summary = json.loads((folder / "report/report.json").read_text(encoding="utf-8"))
    return section, cells[2:], summary["alarms"]


def test_no_alarms_is_said(make_study: Make) -> None:
    section, rows, alarms = written(folder := make_study(WHAT))
    assert "No alarms: none of 6 runs raised one." in section
    assert rows == [] and alarms == []
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    assert "<h2>Health</h2>" in page and 'id="alarms"' not in page and "Carets" not in page


def test_alarms_rollbacks_and_damage_are_rows(make_study: Make) -> None:
    folder = make_study(WHAT)
    plain = written(folder) and (folder / "report/index.html").read_text(encoding="utf-8")
    opd, grpo = RunDir(folder / "runs/opd-s2"), RunDir(folder / "runs/grpo-s1")
    opd.event("alarm", 3, "first", **ALARM)
    opd.event("alarm", 9, "second", **{**ALARM, "value": 0.9})
    # The alarm of step 7 was cut back with its step; that of step 11 is still there.
    change = {"set": {"optimizer.lr": [0.01, 0.005]}}
    opd.event("rollback", 7, "back", alarm="reward_collapse", to_step=4, **change)
    opd.event("alarm", 11, "again", **COLLAPSE)
    change = {"set": {"optimizer.lr": [0.005, 0.0025]}}
    opd.event("rollback", 11, "back", alarm="reward_collapse", to_step=8, **change)
    grpo.event("damaged_checkpoint", 8, "/home/someone/runs: bad bytes")
    section, rows, alarms = written(folder)
    assert "Alarms in 1 of 6 runs: opd-s2. No alarms in the others." in section
    assert "Damaged checkpoints, set aside and made again: grpo-s1." in section
    assert rows == [
        ["opd-s2", "truncation", "warn", "3", "2", "0.4 (limit 0.25)", "–"],
        [
            "opd-s2", "reward collapse", "rollback", "7", "2", "0.1 (limit 0.3)",
            "2 (to step 4, 8; optimizer.lr 0.01 → 0.005 → 0.0025)",
        ],
        ["grpo-s1", "damaged checkpoint", "–", "8", "1", "–", "–"],
    ]  # fmt: skip
    assert [(row["run"], row["steps"], row["rollbacks"]) for row in alarms] == [
        ("opd-s2", [3, 9], []), ("opd-s2", [7, 11], [4, 8]), ("grpo-s1", [8], []),
    ]  # fmt: skip
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    assert "someone" not in page + section and "Carets on an axis" in page
    # Marks on truncation's panel and both rewards', on no other.
    before, after = (
        re.findall(r'<svg role="img".*?</svg>', text, re.DOTALL) for text in (plain, page)
    )
    titles = [re.findall(r'aria-label="([^"]*?) over training', svg) for svg in after]
    marked = [t[0] for t, a, b in zip(titles, before, after, strict=True) if a != b]
    assert marked == [
        "truncated, fraction", "teacher reward, mean R in nats", "outcome reward, mean",
    ]  # fmt: skip


def test_alarms_that_cannot_be_known_are_not_denied(make_study: Make) -> None:
    folder = make_study(WHAT)
    (folder / "runs/opd-s1/events.jsonl").unlink()
    (folder / "runs/grpo-s2/events.jsonl").write_text("no json\n")
    section, _, _ = written(folder)
    assert "No alarms: none of 4 runs raised one." in section
    assert "No events were found of opd-s1 and grpo-s2: alarms are not known." in section
