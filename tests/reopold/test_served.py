"""A student behind an address: one request and one seed a sample, and nothing but the checkpoint.

The server is a real one over HTTP whose answers a test scripts; the last test asks a real vLLM.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reopold.config import ConfigError, EngineConfig
from reopold.data.tokenizers import load_tokenizer
from reopold.engines import endpoint
from reopold.engines.base import EngineFailure
from reopold.engines.endpoint import Unanswered
from reopold.engines.hf import HFEngine
from reopold.engines.served import ServedEngine
from reopold.micro.models import build_model, save_model
from reopold.rollouts import SamplingParams
from reopold.scoring import output_head, score
from reopold.stopping import StopRequested
from tests.reopold.fake_vllm import Answer, FakeVLLM

PROMPTS = [[4, 5, 6], [7, 8], [4, 5, 6]]
PARAMS = SamplingParams(12, 0.6, top_p=0.95)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def checkpoint(suite: Path) -> Path:
    return suite / "student-init"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return load_tokenizer(str(checkpoint))


@pytest.fixture
def serve(tokenizer: Any) -> Iterator[Callable[..., FakeVLLM]]:
    servers: list[FakeVLLM] = []

    def start(**settings: Any) -> FakeVLLM:
        servers.append(FakeVLLM(tokenizer, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


Serve = Callable[..., FakeVLLM]


def connect(server: FakeVLLM, **settings: Any) -> ServedEngine:
    return ServedEngine([server.url], server.tokenizer, **settings)


def test_every_sample_is_a_request_with_a_seed_of_its_own(serve: Serve) -> None:
    """lm-evaluation-harness sends one seed with all k of a question: k equal samples."""
    server, told = serve(), {}
    engine = connect(server)
    rollouts = engine.generate(
        PROMPTS, PARAMS, seeds=[10, 20, 30], n=4, on_finished=lambda i, r: told.update({i: r})
    )
    seeds = sorted((tuple(body["prompt"]), body["seed"]) for body in server.asked)
    wanted = [
        (tuple(p), s + i) for p, s in zip(PROMPTS, (10, 20, 30), strict=True) for i in range(4)
    ]
    assert seeds == sorted(wanted) and all(body["n"] == 1 for body in server.asked)
    assert [r.prompt_ids for r in rollouts] == [p for p in PROMPTS for _ in range(4)]
    assert [told[i] for i in range(12)] == rollouts
    assert len({tuple(r.response_ids) for r in rollouts}) == 12
    again = engine.generate(PROMPTS[1:2], PARAMS, seeds=[21])
    assert again[0].response_ids == rollouts[5].response_ids


def test_what_is_asked_for_is_said_and_so_is_what_is_not(serve: Serve) -> None:
    """A server fills what is left out from the model's generation_config.json."""
    server = serve()
    params = SamplingParams(12, 0.6, top_p=0.95, stop_ids=(7, 9), min_new_tokens=2)
    connect(server).generate(PROMPTS[:1], params, seeds=[3], limits=[5])
    assert server.asked == [
        {
            "model": "student",
            "prompt": [4, 5, 6],
            "n": 1,
            "seed": 3,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": 5,
            "min_tokens": 2,
            "logprobs": 0,
            "stop_token_ids": [server.tokenizer.eos_token_id, 7, 9],
            "ignore_eos": True,
            "return_token_ids": True,
        }
    ]


def test_why_a_response_ended(serve: Serve) -> None:
    server = serve()
    params = SamplingParams(12, stop_ids=(7,))
    rollouts = connect(server).generate([[4]] * 40, params, seeds=range(40))
    ends = {7, server.tokenizer.eos_token_id}
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert (rollout.response_ids[-1] in ends) == (rollout.finish_reason == "stop")
        assert rollout.logprobs == [-0.5 - t for t in range(len(rollout.response_ids))]


def test_a_stop_string_is_said_and_found_in_what_comes_back(serve: Serve) -> None:
    """The server here knows nothing of stop strings: its answers are longer."""
    server = serve()
    engine = connect(server)
    plain = engine.generate([[4]] * 20, SamplingParams(12), seeds=range(20))
    params = SamplingParams(12, stop_strings=("1", "7="))
    stopped = engine.generate([[4]] * 20, params, seeds=range(20))
    assert {r.finish_reason for r in stopped} == {"stop", "length"}
    for before, after in zip(plain, stopped, strict=True):
        text = server.tokenizer.decode(before.response_ids)
        if "1" in text or "7=" in text:
            assert after.finish_reason == "stop"
            assert server.tokenizer.decode(after.response_ids).endswith(("1", "7="))
        assert after.response_ids == before.response_ids[: len(after.response_ids)]
        assert after.logprobs == before.logprobs[: len(after.response_ids)]
    body = server.asked[-1]
    assert body["stop"] == ["1", "7="] and body["include_stop_str_in_output"] is True
    assert body["skip_special_tokens"] is False  # they are part of the text

    def early(body: dict[str, Any], choice: dict[str, Any]) -> None:
        choice.update(token_ids=[5, 6], logprobs={"token_logprobs": [-1.0, -1.0]})
        choice.update(finish_reason="stop", stop_reason="7=")

    server.change = early
    with pytest.raises(EngineFailure, match=r"at '7=', which its last id, 6, does not end"):
        engine.generate([[4]], SamplingParams(12, stop_strings=("7=",)), seeds=[1])


def test_no_server_there(tokenizer: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ConfigError, match=rf"no model is served at {url}.*vllm serve .*student-in"):
        ServedEngine(url, tokenizer)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "", "http://h:port"])
def test_no_address(url: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no address of a server"):
        ServedEngine(url, tokenizer)
    with pytest.raises(ConfigError, match="no address of a server"):
        ServedEngine([], tokenizer)


def test_an_address_may_end_as_other_clients_want_it(serve: Serve) -> None:
    server = serve()
    for end in ("/", "/v1", "/v1/"):
        assert list(ServedEngine(server.url + end, server.tokenizer).models) == [server.url]


def test_a_model_with_another_tokenizer_is_refused(serve: Serve) -> None:
    server = serve()
    server.tokenize = lambda body: (200, {"tokens": [1, 2, 3]})  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="with another tokenizer"):
        connect(server)
    server.reads = False
    del server.tokenize
    assert connect(server).name == "student"  # no vLLM, or an old one: nothing can be said


def test_the_tokenizer_is_asked_about_the_whole_vocabulary(serve: Serve, tokenizer: Any) -> None:
    server, texts = serve(), []

    def note(body: dict[str, Any]) -> Answer:
        texts.append(body["prompt"])
        return 200, {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}

    server.tokenize = note  # type: ignore[method-assign]
    connect(server)
    assert set(tokenizer.encode(texts[0], add_special_tokens=False)) == set(range(len(tokenizer)))


def without_ids(body: dict[str, Any], choice: dict[str, Any]) -> None:
    del choice["token_ids"]


def test_a_server_without_token_ids_is_refused(serve: Serve) -> None:
    server = serve()
    server.change = without_ids
    with pytest.raises(ConfigError, match=r"0 token ids and 1 log-probs.*return_token_ids"):
        connect(server)
    server.instead = lambda body: (400, {"error": {"message": "prompt must be a string"}})
    with pytest.raises(ConfigError, match="400: prompt must be a string"):
        connect(server)


def test_the_highest_id_of_the_tokenizer_is_known_to_the_server(serve: Serve) -> None:
    server = serve()
    connect(server)
    assert server.bodies[0]["prompt"] == [len(server.tokenizer) - 1]


@pytest.mark.parametrize("length", [14, None])
def test_a_context_that_is_just_long_enough(serve: Serve, length: int | None) -> None:
    server = serve()
    server.cards[0]["max_model_len"] = length
    assert connect(server).generate(PROMPTS[1:2], PARAMS, seeds=[1])


def test_a_context_that_is_too_short_is_refused_before_anything_is_sampled(serve: Serve) -> None:
    server = serve()
    server.cards[0]["max_model_len"] = 14
    engine = connect(server)
    with pytest.raises(ConfigError, match=r"takes 14 tokens.*3.*12.*--max-model-len 15"):
        engine.generate(PROMPTS, PARAMS, seeds=[1, 2, 3])
    assert server.asked == []
    assert engine.generate(PROMPTS, PARAMS, seeds=[1, 2, 3], limits=[11, 12, 4])


def test_other_weights_on_this_machine_are_refused(
    serve: Serve, checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(checkpoint, copy)
    save_model(build_model(tokenizer, width=16, layers=1, seed=99), tokenizer, other)
    for root in (str(checkpoint), str(copy), "/no/folder/here", "Qwen/Qwen3-0.6B", ""):
        assert connect(serve(root=root)).models
    with pytest.raises(ConfigError, match="has other weights than"):
        connect(serve(root=str(other)))


def test_which_of_several_models(serve: Serve, checkpoint: Path) -> None:
    server = serve(root=str(checkpoint))
    server.cards.append({"id": "adapter", "root": "/adapters/x", "max_model_len": 64})
    assert connect(server).name == "student"
    server.cards[0]["root"] = "/elsewhere"
    with pytest.raises(ConfigError, match=r"serves student, adapter, and it is not clear"):
        connect(server)
    server.cards = []
    with pytest.raises(ConfigError, match="serves none"):
        connect(server)


def test_something_else_at_the_address(serve: Serve) -> None:
    server = serve()
    server.cards = "<html>"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="lists no models"):
        connect(server)


def test_replicas_share_the_work_and_must_serve_the_same(serve: Serve) -> None:
    one, two, other = serve(), serve(), serve(name="other")
    engine = ServedEngine([one.url, two.url], one.tokenizer)
    engine.generate(PROMPTS, PARAMS, seeds=[1, 2, 3], n=8)
    assert len(one.asked) + len(two.asked) == 24 and one.asked and two.asked
    with pytest.raises(ConfigError, match=r"no replicas: they serve other and student"):
        ServedEngine([one.url, other.url], one.tokenizer)


def test_a_busy_server_is_asked_again_and_a_broken_one_is_not_believed(serve: Serve) -> None:
    server = serve()
    engine = connect(server)
    faults = iter([503, 429])
    server.instead = lambda body: (code, {}) if (code := next(faults, 0)) else None
    assert len(engine.generate(PROMPTS[:1], PARAMS, seeds=[1])) == 1
    assert len(server.asked) == 3
    server.instead = lambda body: (500, {"message": "out of memory"})
    with pytest.raises(Unanswered, match=r"5 attempts.*out of memory"):
        engine.generate(PROMPTS[:1], PARAMS, seeds=[1])


def ended_early(body: dict[str, Any], choice: dict[str, Any]) -> None:
    choice.update(token_ids=[9], finish_reason="stop", logprobs={"token_logprobs": [-1.0]})


def cut_off(body: dict[str, Any], choice: dict[str, Any]) -> None:
    choice.update(token_ids=[9], finish_reason="length", logprobs={"token_logprobs": [-1.0]})


def too_long(body: dict[str, Any], choice: dict[str, Any]) -> None:
    choice.update(token_ids=[9] * 13, logprobs={"token_logprobs": [-1.0] * 13})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ended_early, "id 9, which nobody asked for: start it with --generation-config vllm"),
        (cut_off, r"after 1 of 12 tokens \(length\): raise its --max-model-len"),
        (too_long, "returned 13 tokens where 12"),
        (without_ids, "must be a vLLM"),
    ],
)
def test_a_response_that_nobody_asked_for(serve: Serve, change: Any, message: str) -> None:
    server = serve()
    engine = connect(server)
    server.change = change
    with pytest.raises(EngineFailure, match=message):
        engine.generate(PROMPTS[:1], PARAMS, seeds=[1])


def test_a_stop_does_not_wait_for_the_server(serve: Serve) -> None:
    stop, over = threading.Event(), threading.Event()
    server = serve()
    engine = connect(server, should_stop=stop.is_set)

    def never(body: dict[str, Any]) -> Answer | None:
        over.wait(20.0)
        return None

    server.instead = never
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(StopRequested):
        engine.generate(PROMPTS, PARAMS, seeds=[1, 2, 3])
    over.set()


def test_the_server_is_left_as_it_is(serve: Serve) -> None:
    server = serve()
    engine = connect(server)
    with pytest.raises(EngineFailure, match="takes no new weights"):
        engine.update_weights(None, 1)  # type: ignore[arg-type]
    engine.sleep()
    engine.wake()
    with pytest.raises(EngineFailure, match=r"temperature 0\.6"):
        engine.generate(PROMPTS, SamplingParams(4, 0.6, 0.6), seeds=[1, 2, 3])
    engine.close()
    engine.close()
    assert server.asked == [] and engine.weight_version == 0


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not here")
def test_a_real_server_samples_as_the_checkpoint_does(checkpoint: Path, tmp_path: Path) -> None:
    from reopold.engines.servers import start_servers, stop_servers

    config = EngineConfig(kind="server", max_length=64)
    servers = start_servers(checkpoint, config, name="any", logs=tmp_path, dtype="float32")
    try:
        local = HFEngine.load(checkpoint)
        engine = ServedEngine(servers[0].url, local.tokenizer)
        assert (engine.name, engine.models[servers[0].url].max_length) == ("any", 64)
        greedy = SamplingParams(12, 0.0)
        ours = local.generate(PROMPTS, greedy, seeds=[0, 0, 0])
        theirs = engine.generate(PROMPTS, greedy, seeds=[0, 0, 0])
        assert [r.response_ids for r in theirs] == [r.response_ids for r in ours]
        tiny = engine.generate(PROMPTS, SamplingParams(12, top_p=1e-6), seeds=[1, 2, 3])
        assert [r.response_ids for r in tiny] == [r.response_ids for r in ours]

        stop = SamplingParams(12, 0.6, top_p=0.95, stop_ids=(7, 9), min_new_tokens=3)
        drawn = engine.generate(PROMPTS, stop, seeds=[10, 20, 30], n=8)
        assert len({tuple(r.response_ids) for r in drawn}) == 24
        ends = {7, 9, local.tokenizer.eos_token_id}
        for rollout in drawn:
            assert not ends & set(rollout.response_ids[:3])
            assert not ends & set(rollout.response_ids[:-1])
            assert (rollout.response_ids[-1] in ends) == (rollout.finish_reason == "stop")
        assert {r.finish_reason for r in drawn} == {"stop", "length"}
        head = output_head(local.model, len(local.tokenizer))
        trainer = score(local.model, drawn, head=head, micro_batch=8).logprobs_N
        sampler = torch.tensor([x for r in drawn for x in r.logprobs])
        assert (trainer - sampler).abs().max() < 1e-4
        assert (engine.score(drawn).logprobs_N - trainer).abs().max() < 1e-4

        with pytest.raises(ConfigError, match="takes 64 tokens"):
            engine.generate(PROMPTS, SamplingParams(62), seeds=[1, 2, 3])
        other = tmp_path / "other"
        save_model(
            build_model(local.tokenizer, width=16, layers=1, seed=99), local.tokenizer, other
        )
        with pytest.raises(ConfigError, match="has other weights"):
            ServedEngine(servers[0].url, load_tokenizer(str(other)))
    finally:
        stop_servers(servers)
