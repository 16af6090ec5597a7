"""What every engine owes its callers, tested on each of them through the protocol alone.

Hugging Face runs everywhere; vLLM in process and over HTTP where it is installed
(`make test-vllm`). The oracle is the trainer's own scoring of the same weights.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen3ForCausalLM

from reopold.config import (
    ConfigError,
    DataConfig,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
)
from reopold.data.images import Image
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import Engine, EngineFailure
from reopold.engines.build import build_engine
from reopold.engines.handover import hand_over
from reopold.engines.hf import HFEngine, load_model
from reopold.logprobs import Head
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores, output_head, score
from reopold.stopping import StopRequested

PROMPTS = ["3+4*2=", "9-1*5+2-7*3=", "1*1=", "3+4*2=", "8-8-8=", "2+2*9-1="]
SAMPLED = SamplingParams(max_new_tokens=24)
#: vLLM's kernels against transformers', float32.
TOLERANCE = 1e-4

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not here: make test-vllm"
    ),
]
KINDS = [
    pytest.param(("hf", True), id="hf-tied"),
    pytest.param(("hf", False), id="hf-untied"),
    pytest.param(("vllm", True), id="vllm-tied", marks=needs_vllm),
    pytest.param(("server", True), id="replicas-tied", marks=needs_vllm),
    pytest.param(("server", False), id="replicas-untied", marks=needs_vllm),
]


@dataclasses.dataclass
class Rig:
    """An engine, and the model that it must agree with."""

    kind: str
    engine: Engine
    model: PreTrainedModel
    tokenizer: Any
    stop: threading.Event
    version: int = 0

    @property
    def prompts(self) -> list[list[int]]:
        return [self.tokenizer.encode(text) for text in PROMPTS]

    @property
    def head(self) -> Head:
        return output_head(self.model, len(self.tokenizer))

    def trainer(self, rollouts: list[Rollout], top_k: int = 0) -> Scores:
        return score(self.model, rollouts, head=self.head, micro_batch=8, top_k=top_k)


def build_student(suite: Path, tied: bool) -> PreTrainedModel:
    """The micro student with 12 padding rows in its vocabulary, sharpened so that rows end."""
    torch.manual_seed(7)
    config = load_model(str(suite / "student-init"), dtype="float32", device="cpu").config
    config.vocab_size, config.tie_word_embeddings = 32, tied
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4.0)
        if not tied:
            model.lm_head.weight.mul_(8.0)
    return model


@pytest.fixture(scope="module", params=KINDS)
def rig(request: Any, suite: Path, tmp_path_factory: Any) -> Iterator[Rig]:
    kind, tied = request.param
    model = build_student(suite, tied)
    tokenizer = load_tokenizer(str(suite / "student-init"))
    config = RunConfig(
        name="contract",
        method="grpo",
        model=ModelConfig(student=str(suite / "student-init")),
        data=DataConfig(train="./prompts.jsonl"),
        engine=EngineConfig(kind=kind, replicas=2 if kind == "server" else 1),
        objective=ObjectiveConfig(),
    )
    engine = build_engine(
        config,
        model,
        tokenizer,
        tmp_path_factory.mktemp("engine"),
        version=0,
        should_stop=(stop := threading.Event()).is_set,
    )
    rig = Rig(kind, engine, model, tokenizer, stop)
    if kind != "hf":
        hand_over(engine, model, rig.head, 0, torch.float32)
    yield rig
    engine.close()
    engine.close()  # a second call does nothing


def sampler_logprobs(rollouts: list[Rollout]) -> torch.Tensor:
    return torch.tensor([x for r in rollouts for x in r.logprobs])


def gap(rig: Rig, rollouts: list[Rollout]) -> float:
    return float((rig.trainer(rollouts).logprobs_N - sampler_logprobs(rollouts)).abs().max())


def test_samples_of_a_prompt_lie_together_and_carry_the_trainers_log_probs(rig: Rig) -> None:
    rollouts = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(10, 16), n=3)
    assert [r.prompt_ids for r in rollouts] == [p for p in rig.prompts for _ in range(3)]
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert gap(rig, rollouts) < TOLERANCE
    assert all(r.weight_version == rig.engine.weight_version for r in rollouts)
    assert max(token for r in rollouts for token in r.response_ids) < len(rig.tokenizer)


def test_a_sample_depends_on_its_own_seed_and_on_nothing_else(rig: Rig) -> None:
    """Sample i of a request is drawn with seed + i, alone or in company."""
    together = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(50, 56), n=3)
    for i, prompt in enumerate(rig.prompts[:3]):
        for j in range(3):
            (alone,) = rig.engine.generate([prompt], SAMPLED, seeds=[50 + i + j])
            assert alone.response_ids == together[3 * i + j].response_ids
    again = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(50, 56), n=3)
    assert [r.response_ids for r in again] == [r.response_ids for r in together]
    other = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(90, 96), n=3)
    assert [r.response_ids for r in other] != [r.response_ids for r in together]


def test_eos_ends_a_response_and_the_limit_cuts_it(rig: Rig) -> None:
    eos = rig.tokenizer.eos_token_id
    for rollout in rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=8):
        assert eos not in rollout.response_ids[:-1]
        assert (rollout.response_ids[-1] == eos) == (rollout.finish_reason == "stop")
        assert 1 <= len(rollout.response_ids) == len(rollout.logprobs) <= 24
        assert rollout.finish_reason == "stop" or len(rollout.response_ids) == 24


def test_greedy_is_the_likeliest_token_every_time(rig: Rig) -> None:
    greedy = SamplingParams(max_new_tokens=8, temperature=0.0)
    rollouts = rig.engine.generate(rig.prompts[:3], greedy, seeds=[1, 2, 3], n=2)
    assert rollouts[0].response_ids == rollouts[1].response_ids
    top = rig.trainer(rollouts, top_k=1).distribution
    assert top is not None
    chosen = [token for r in rollouts for token in r.response_ids]
    assert top.ids_NK[:, 0].tolist() == chosen  # type: ignore[union-attr]


def test_log_probs_are_those_of_temperature_1_whatever_the_draws_temperature(rig: Rig) -> None:
    cool = SamplingParams(max_new_tokens=12, temperature=0.6)
    assert gap(rig, rig.engine.generate(rig.prompts, cool, seeds=range(6), n=2)) < TOLERANCE
    warm = SamplingParams(max_new_tokens=12, temperature=0.6, logprob_temperature=0.6)
    if rig.kind == "hf":
        assert gap(rig, rig.engine.generate(rig.prompts, warm, seeds=range(6))) > 0.01
    else:
        with pytest.raises(EngineFailure, match=r"temperature 0\.6"):
            rig.engine.generate(rig.prompts, warm, seeds=range(6))


def test_a_nucleus_leaves_out_the_tail_and_the_log_probs_alone(rig: Rig) -> None:
    """A tiny one is greedy, the whole is sampling without one, and between them ids are missing."""
    greedy = rig.engine.generate(rig.prompts, SamplingParams(12, 0.0), seeds=range(6))
    tiny = rig.engine.generate(rig.prompts, SamplingParams(12, top_p=1e-6), seeds=range(6))
    assert [r.response_ids for r in tiny] == [r.response_ids for r in greedy]
    whole = rig.engine.generate(rig.prompts, SamplingParams(12, top_p=1.0), seeds=range(6))
    plain = rig.engine.generate(rig.prompts, SamplingParams(12), seeds=range(6))
    assert [r.response_ids for r in whole] == [r.response_ids for r in plain]

    nucleus = rig.engine.generate(rig.prompts, SamplingParams(12, 2.0, top_p=0.7), seeds=range(6))
    assert gap(rig, nucleus) < TOLERANCE
    full = rig.engine.generate(rig.prompts, SamplingParams(12, 2.0), seeds=range(6))
    assert max(likelier(rig, nucleus, 2.0)) < 0.7 + 1e-4
    assert max(likelier(rig, full, 2.0)) > 0.75
    assert sum(p > 0.0 for p in likelier(rig, nucleus, 2.0)) > 5  # not merely greedy


def likelier(rig: Rig, rollouts: list[Rollout], temperature: float) -> list[float]:
    """Of every response token: probability of all the tokens that are likelier than it."""
    top: Any = rig.trainer(rollouts, top_k=len(rig.tokenizer)).distribution
    probs_NK = torch.softmax(top.logprobs_NK.double() / temperature, -1)
    chosen_N = torch.tensor([token for r in rollouts for token in r.response_ids])
    is_own_NK = top.ids_NK == chosen_N[:, None]
    found: list[float] = (probs_NK.cumsum(-1) - probs_NK)[is_own_NK].tolist()
    return found


def test_stop_ids_end_a_response_as_eos_does_but_not_its_first_tokens(rig: Rig) -> None:
    stops = tuple(rig.tokenizer.encode("0123456"))
    ends = {*stops, rig.tokenizer.eos_token_id}
    params = SamplingParams(24, stop_ids=stops)
    plain = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=4)
    ended = rig.engine.generate(rig.prompts, params, seeds=range(6), n=4)
    for before, after in zip(plain, ended, strict=True):
        assert after.response_ids == before.response_ids[: len(after.response_ids)]
        assert not ends & set(after.response_ids[:-1])
        assert (after.response_ids[-1] in ends) == (after.finish_reason == "stop")
    held = rig.engine.generate(
        rig.prompts, dataclasses.replace(params, min_new_tokens=4), seeds=range(6), n=4
    )
    assert min(len(r.response_ids) for r in ended) < 4
    assert all(not ends & set(r.response_ids[:4]) for r in held)
    assert gap(rig, held) < TOLERANCE


@pytest.mark.parametrize(
    ("strings", "stop_ids"),
    [
        pytest.param(("1=",), (), id="across two tokens"),
        pytest.param(("7", "3*", "os>"), (), id="one of several"),
        pytest.param(("|us", "ssis"), (), id="within a token"),
        pytest.param(tuple("0123456789"), (), id="at the first token"),
        pytest.param(("never",), (), id="never"),
        pytest.param(("-",), (14, 16), id="with stop ids"),
    ],
)
def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(
    rig: Rig, strings: tuple[str, ...], stop_ids: tuple[int, ...]
) -> None:
    params = SamplingParams(24, stop_strings=strings, stop_ids=stop_ids)
    plain = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=4)
    stopped = rig.engine.generate(rig.prompts, params, seeds=range(6), n=4)
    ends = {*stop_ids, rig.tokenizer.eos_token_id}
    for before, after in zip(plain, stopped, strict=True):
        ids = before.response_ids
        length = next(
            (
                n
                for n in range(1, len(ids) + 1)
                if ids[n - 1] in ends or any(s in rig.tokenizer.decode(ids[:n]) for s in strings)
            ),
            None,
        )
        assert after.response_ids == ids[:length]
        assert after.finish_reason == ("length" if length is None else "stop")
    assert gap(rig, stopped) < TOLERANCE
    again = rig.engine.generate(rig.prompts, params, seeds=range(6), n=4)
    assert [r.response_ids for r in again] == [r.response_ids for r in stopped]


def test_a_text_model_takes_no_images(rig: Rig) -> None:
    picture = Image("none.png", "0")
    with pytest.raises(ConfigError, match="images, which this model does not take"):
        rig.engine.generate(rig.prompts[:1], SAMPLED, seeds=[1], images=[[picture]])


def test_a_limit_of_a_request_is_its_own(rig: Rig) -> None:
    limits = [1, 24, 5, 9, 2, 12]
    plain = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=2)
    cut = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=2, limits=limits)
    for i, (before, after) in enumerate(zip(plain, cut, strict=True)):
        assert after.response_ids == before.response_ids[: limits[i // 2]]
        if len(before.response_ids) > limits[i // 2]:
            assert after.finish_reason == "length"


def test_every_rollout_is_reported_once_when_it_is_finished(rig: Rig) -> None:
    told: dict[int, Rollout] = {}

    def note(place: int, rollout: Rollout) -> None:
        assert place not in told
        told[place] = rollout

    rollouts = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=4, on_finished=note)
    assert [told[place] for place in range(24)] == rollouts
    assert rig.engine.generate([], SAMPLED, seeds=[], on_finished=note) == []


def test_scores_are_the_trainers(rig: Rig) -> None:
    rollouts = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=2)
    ours, theirs = rig.trainer(rollouts, top_k=1), rig.engine.score(rollouts, top_k=1)
    assert (ours.logprobs_N - theirs.logprobs_N).abs().max() < TOLERANCE
    assert ours.distribution is not None and theirs.distribution is not None
    likeliest = (ours.distribution, theirs.distribution)
    assert torch.equal(*(top.ids_NK for top in likeliest))  # type: ignore[union-attr]
    mine, other = (top.logprobs_NK for top in likeliest)  # type: ignore[union-attr]
    assert (mine - other).abs().max() < TOLERANCE


def test_three_updates_are_read_back_and_sampled_from(rig: Rig) -> None:
    """The same prompts each time: an answer from a cached prefix would be one of old weights."""
    generator = torch.Generator().manual_seed(3)
    before = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=2)
    for _ in range(3):
        with torch.no_grad():
            for parameter in rig.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * parameter.std() * noise)
        rig.version += 1
        if rig.kind != "hf":
            assert hand_over(rig.engine, rig.model, rig.head, rig.version, torch.float32) < 1e-3
        else:
            assert rig.engine.update_weights(rig.model, rig.version) == rig.version
        assert rig.engine.weight_version == rig.version
        rollouts = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=2)
        assert gap(rig, rollouts) < TOLERANCE
        assert {r.weight_version for r in rollouts} == {rig.version}
        assert gap(rig, before) > 0.01  # the old samples are off under the new weights
        before = rollouts


def test_sleep_and_wake_change_nothing(rig: Rig) -> None:
    before = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6))
    rig.engine.sleep()
    rig.engine.wake()
    after = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6))
    assert [r.response_ids for r in after] == [r.response_ids for r in before]


def test_a_stop_gives_the_batch_up_and_leaves_the_engine_usable(rig: Rig) -> None:
    before = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6))
    rig.stop.set()
    with pytest.raises(StopRequested):
        rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6), n=4)
    rig.stop.clear()
    after = rig.engine.generate(rig.prompts, SAMPLED, seeds=range(6))
    assert [r.response_ids for r in after] == [r.response_ids for r in before]


def test_a_copy_of_the_model_takes_new_weights(suite: Path) -> None:
    """The Hugging Face engine where it does not share its model with the trainer."""
    engine = HFEngine.load(suite / "student-init")
    trained = load_model(str(suite / "student-init"), dtype="float32", device="cpu")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    assert hand_over(engine, trained, output_head(trained, 21), 4, torch.float32) < 1e-6
    assert engine.weight_version == 4
