"""Prompts of several sets: shares, turns, and an order that any draw can be made from."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reopold.config import ConfigError, DataConfig, Family, PromptSet
from reopold.data.prompts import Prompt, PromptMix, batch_indices, check_sets, load_mix
from reopold.recipes import parse

SHARES = st.lists(st.integers(1, 12), min_size=2, max_size=6).map(tuple)


def prompts(place: int, count: int) -> list[Prompt]:
    return [Prompt(f"{place}/{i}", [], "") for i in range(count)]


def mix(shares: tuple[int, ...], sizes: list[int], seed: int = 7) -> PromptMix:
    sets = [prompts(place, sizes[place % len(sizes)]) for place in range(len(shares))]
    return PromptMix(sets, shares, seed)


def stream(made: PromptMix, size: int, draws: int) -> list[Prompt]:
    return [prompt for number in range(draws) for prompt in made.draw(size, number)]


@given(SHARES, st.integers(1, 9), st.integers(1, 30))
def test_no_set_is_ever_a_prompt_ahead_or_behind(
    shares: tuple[int, ...], size: int, draws: int
) -> None:
    total, taken = sum(shares), Counter[str]()
    for position, prompt in enumerate(stream(mix(shares, [50]), size, draws), 1):
        taken[prompt.id.split("/")[0]] += 1
        for place, share in enumerate(shares):
            assert abs(taken[str(place)] - Fraction(share * position, total)) < 1
        if position % total == 0:
            assert [taken[str(place)] for place in range(len(shares))] == [
                share * position // total for share in shares
            ]


@given(SHARES, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40))
def test_no_prompt_comes_again_before_its_set_is_through(
    shares: tuple[int, ...], sizes: list[int], length: int
) -> None:
    made = mix(shares, sizes)
    for place, of_set in enumerate(made.sets):
        own = [p.id for p in stream(made, 5, length) if p.id.startswith(f"{place}/")]
        for start in range(0, len(own), len(of_set)):
            epoch = own[start : start + len(of_set)]
            assert len(set(epoch)) == len(epoch)


@given(SHARES, st.integers(1, 12), st.integers(0, 40), st.integers(0, 5))
def test_a_draw_is_a_function_of_seed_and_number(
    shares: tuple[int, ...], size: int, number: int, seed: int
) -> None:
    whole = stream(mix(shares, [11, 5], seed), size, number + 1)
    assert mix(shares, [11, 5], seed).draw(size, number) == whole[number * size :]


@given(SHARES, st.integers(1, 4), st.integers(0, 9))
def test_every_update_of_a_step_has_its_share_of_each(
    shares: tuple[int, ...], updates: int, number: int
) -> None:
    size, total = 24, sum(shares)
    step = mix(shares, [40]).draw(size, number)
    for update in range(updates):
        part = step[update * size // updates : (update + 1) * size // updates]
        for place, share in enumerate(shares):
            count = sum(prompt.id.startswith(f"{place}/") for prompt in part)
            assert abs(count - Fraction(share * len(part), total)) < 2  # either end is within one


def test_another_seed_is_another_order() -> None:
    assert mix((1, 1), [30], 1).draw(12, 0) != mix((1, 1), [30], 2).draw(12, 0)
    first, second = (
        [p.id.split("/")[1] for p in stream(mix((1, 1), [30]), 12, 5) if p.id.startswith(place)]
        for place in ("0/", "1/")
    )
    assert first != second, "two sets of one size must not be in the same order"


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 30), st.integers(0, 9))
def test_one_set_is_drawn_from_as_if_there_were_no_mix(
    total: int, size: int, number: int, seed: int
) -> None:
    one = PromptMix([prompts(0, total)], (1,), seed)
    expected = [f"0/{i}" for i in batch_indices(total, size, number, seed)]
    assert [prompt.id for prompt in one.draw(size, number)] == expected


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([1.0], (1,)),
        ([0.25], (1,)),
        ([2.0, 1.0], (2, 1)),
        ([0.7, 0.3], (7, 3)),
        ([1.0, 1.0, 1.0], (1, 1, 1)),
        ([0.5, 1.5, 1.0], (1, 3, 2)),
        ([1e-2, 1.0], (1, 100)),
    ],
)
def test_weights_are_shares_as_they_are_written(
    weights: list[float], shares: tuple[int, ...]
) -> None:
    others = [PromptSet(train="./x", family="tools", weight=w) for w in weights[1:]]
    assert DataConfig(train="./x", weight=weights[0], mix=others).shares == shares


@pytest.mark.parametrize("weight", [1 / 3, 1e-5, 12345.67])
def test_weights_that_come_out_after_ages_are_refused(weight: float) -> None:
    raw = {"train": "./x", "mix": [{"train": "./y", "family": "tools", "weight": weight}]}
    with pytest.raises(ConfigError, match="write them in fewer digits"):
        parse(raw, DataConfig, "r.yaml")


def test_every_set_is_read_with_its_family(tmp_path: Path) -> None:
    names: list[Family] = ["maths", "tools"]
    for family in names:
        line = {"id": family, "prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}
        (tmp_path / f"{family}.jsonl").write_text(json.dumps(line))
    second = PromptSet(train=str(tmp_path / "tools.jsonl"), family="tools", weight=3)
    data = DataConfig(train=str(tmp_path / "maths.jsonl"), mix=[second])
    found = load_mix(data, "maths", seed=1)
    assert [prompt.family for prompt in found.prompts] == names
    assert Counter(prompt.family for prompt in found.draw(8, 0)) == {"maths": 2, "tools": 6}
    (tmp_path / "tools.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"tools\.jsonl line 1: not valid JSON"):
        load_mix(data, "maths", seed=1)
    with pytest.raises(ConfigError, match="needs a 'completion'"):
        load_mix(DataConfig(train=str(tmp_path / "maths.jsonl")), "maths", 1, completions=True)
    beside = data.model_copy(update={"mix": [PromptSet(train="tools.jsonl", family="tools")]})
    with pytest.raises(ConfigError, match=r"data\.mix\.0\.train must be a local file"):
        check_sets(beside)
