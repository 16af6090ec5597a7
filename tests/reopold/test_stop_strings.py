"""Stop strings: the token that completes one is found, however the text was cut into tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reopold.engines.hf import HFEngine
from reopold.engines.stops import StopStrings, completing_ids
from reopold.micro.models import build_model
from reopold.micro.tokenizer import build_tokenizer
from reopold.rollouts import SamplingParams

CORPUS = [
    "```output\n4\n```\n",
    "print('é€')",
    "# 3*4=12 ```python",
    "out put tput é ü 日本語 ",
] * 20


def byte_level() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def sentencepiece() -> Any:
    """As Llama's: spaces are `▁`, what is not in the vocabulary is spelt in bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<eos>", *bytes_],
        limit_alphabet=30,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bytes": (byte_level(), ("```output", "é€", "\n4")),
    "pieces": (sentencepiece(), ("put", " ou", "é")),
    "characters": (build_tokenizer(), ("#1", "12=")),
}


def first_end(tokenizer: Any, ids: list[int], strings: tuple[str, ...]) -> int | None:
    """The brute force: the text of every beginning, all of it decoded anew."""
    for length in range(1, len(ids) + 1):
        if any(string in tokenizer.decode(ids[:length]) for string in strings):
            return length
    return None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_end_is_where_the_whole_text_first_holds_a_string(kind: str, data: Any) -> None:
    tokenizer, strings = KINDS[kind]
    found = StopStrings(tokenizer, strings)
    likely = sorted(found.candidates)
    ids: list[int] = []
    for _ in range(data.draw(st.integers(0, 10))):
        part = data.draw(st.sampled_from(["any", "likely", "spelt", "spelt"]))
        if part == "any":
            ids.append(data.draw(st.integers(0, len(tokenizer) - 1)))
        elif part == "likely":
            ids.append(data.draw(st.sampled_from(likely)))
        else:
            string = data.draw(st.sampled_from(strings))
            cut = string[: data.draw(st.integers(1, len(string)))]
            ids += tokenizer.encode(cut, add_special_tokens=False)
    end = first_end(tokenizer, ids, strings)
    assert found.end(ids) == end
    upto = range(1, (end or len(ids)) + 1)
    assert [found.completes(ids[:n]) for n in upto] == [n == end for n in upto]


def test_a_character_in_several_tokens_is_complete_with_its_last() -> None:
    tokenizer, _ = KINDS["pieces"]
    ids = tokenizer.convert_tokens_to_ids(["<0xE2>", "<0x82>", "<0xAC>"])
    found = StopStrings(tokenizer, ["€"])
    assert [found.completes(ids[:n]) for n in (1, 2, 3)] == [False, False, True]


def test_few_ids_are_looked_at_twice() -> None:
    tokenizer, _ = KINDS["bytes"]
    assert len(completing_ids(tokenizer, ("```output",))) < 0.1 * len(tokenizer)
    assert completing_ids(tokenizer, ()) == frozenset()


class TestEngine:
    @pytest.fixture(scope="class")
    def engine(self) -> HFEngine:
        tokenizer = build_tokenizer()
        return HFEngine(build_model(tokenizer, width=32, layers=1, seed=4), tokenizer)

    @pytest.mark.parametrize("strings", [("#", "=="), ("7", "1*"), ("*-", "0")])
    def test_a_response_is_the_one_without_stop_strings_up_to_the_first(
        self, engine: HFEngine, strings: tuple[str, ...]
    ) -> None:
        prompts = [[2, 5, 6, 3], [2, 9, 3], [2, 5, 14, 6, 7, 3]]
        limits, seeds = [30, 40, 7], [1, 50, 90]
        params = SamplingParams(40, stop_strings=strings)
        plain = engine.generate(prompts, SamplingParams(40), seeds=seeds, n=8, limits=limits)
        found = engine.generate(prompts, params, seeds=seeds, n=8, limits=limits)
        reasons = set()
        for i, (ours, whole) in enumerate(zip(found, plain, strict=True)):
            end = first_end(engine.tokenizer, whole.response_ids, strings)
            assert ours.response_ids == whole.response_ids[:end]
            assert ours.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)
            assert ours.finish_reason == ("stop" if end else whole.finish_reason)
            assert len(ours.response_ids) <= limits[i // 8]
            reasons.add((ours.finish_reason, end is None))
        assert ("stop", False) in reasons and len(reasons) > 1

    def test_without_them_not_a_bit_changes(self, engine: HFEngine) -> None:
        prompts = [[2, 5, 6, 3], [2, 9, 3]]
        one, two = (
            engine.generate(prompts, SamplingParams(20, stop_strings=s), seeds=[1, 9], n=4)
            for s in ((), ("never in ten tokens of digits",))
        )
        assert one == two
