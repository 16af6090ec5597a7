"""No program escapes, none hangs, and each ends in the status that it should."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from reopold.sandbox import Limits, Outcome, run_program
from reopold.sandbox.child import Mode
from tests.reopold.sandbox.attacks import PROCESSES, RESOURCES, SIGNALS, Attack
from tests.reopold.sandbox.escapes import FILES, KERNEL, NETWORK, PYTHON
from tests.reopold.sandbox.surroundings import BARE, MARK, use

REPOSITORY = Path(__file__).parents[3]
LIMITS = Limits(
    memory_bytes=400 << 20,
    output_bytes=1 << 16,
    file_bytes=1 << 16,
    processes=8,
)

ATTACKS = [*RESOURCES, *SIGNALS, *PROCESSES, *NETWORK, *FILES, *KERNEL, *PYTHON]
#: Each way to run programs, with what is tried on it.
WAYS = {"full": ATTACKS, "bare": [*PROCESSES, *FILES]}
WAYS["bare-rest"] = [one for one in ATTACKS if one.bare and one not in WAYS["bare"]]
CASES = [
    pytest.param(
        way,
        attack,
        id=f"{way}-{attack.name}",
        marks=[pytest.mark.slow] if way == "bare-rest" else [],
    )
    for way, attacks in WAYS.items()
    for attack in attacks
]

Outcomes = dict[str, Outcome]


def run_all(attacks: list[Attack], secret: Path) -> Outcomes:
    """Every attack, four at a time, from threads."""
    words = {
        "MARK": MARK,
        "REPOSITORY": str(REPOSITORY),
        "SECRET_FILE": str(secret),
        "SECRET_FOLDER": str(secret.parent),
    }

    def run(attack: Attack) -> Outcome:
        pattern = "|".join(sorted(words, key=len, reverse=True))
        code = re.sub(pattern, lambda match: words[match.group()], attack.code)
        return run_program(code, limits=replace(LIMITS, seconds=attack.seconds))

    with ThreadPoolExecutor(4) as pool:
        return dict(zip([attack.name for attack in attacks], pool.map(run, attacks), strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcomes]:
    """What became of all attacks of a way; they are run when the first is asked for."""

    @cache
    def run(way: str) -> Outcomes:
        folder = tmp_path_factory.mktemp("secret")
        secret = folder / "secret.txt"
        secret.write_text("the parent's")
        undo = use((Mode(True, True), *BARE) if way == "full" else BARE)
        os.environ["SECRET_OF_PARENT"] = "SECRET_OF_PARENT"
        try:
            found = run_all(WAYS[way], secret)
        finally:
            undo()
            del os.environ["SECRET_OF_PARENT"]
        assert secret.read_text() == "the parent's"
        assert list(folder.iterdir()) == [secret]
        assert folder.stat().st_mode & 0o700 == 0o700
        return found

    return run


def test_there_are_at_least_sixty_attacks_and_each_has_a_name() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 60


@pytest.mark.parametrize(("way", "attack"), CASES)
def test_an_attack_does_not_escape_and_ends_as_it_should(
    way: str, attack: Attack, outcomes: Callable[[str], Outcomes]
) -> None:
    outcome = outcomes(way)[attack.name]
    assert "ESCAPED" not in outcome.stdout, outcome.stdout[-500:]
    assert outcome.status in attack.ends, outcome
    assert outcome.seconds < attack.seconds + 5.0
