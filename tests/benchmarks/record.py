"""How measurements are kept and shown."""

from __future__ import annotations

import json

from reopold.provenance import git_commit, hardware, versions
from tasks.home import home

Rows = dict[str, dict[str, float]]


def keep(name: str, found: Rows, repetitions: int) -> None:
    """Write .reopold/NAME.json with commit, versions and hardware, and print every row."""
    record = {
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware("cpu"),
        "repetitions": repetitions,
        **found,
    }
    out = home() / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2), encoding="utf-8")
    for title, rows in found.items():
        print(f"\n{title}")
        for key, value in rows.items():
            print(f"  {key:44} {value:10.3f}")
    print(f"\nkept in {out}")
