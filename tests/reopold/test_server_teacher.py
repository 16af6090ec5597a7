"""A teacher over HTTP that answers late, wrong, in part, or not at all: no score becomes 0.

The server is a real one whose answers a test scripts: the faults, and the two interfaces that
vLLM's CPU build does not serve. Right answers of a real vLLM are tests/integration's.
"""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from reopold.config import ConfigError, TeacherConfig
from reopold.data.images import Image
from reopold.engines import endpoint
from reopold.engines.endpoint import Endpoints, Unanswered, served_name
from reopold.rewards import MissingScore
from reopold.rollouts import Needs, Rollout
from reopold.stopping import StopRequested
from reopold.teachers.server import ServerTeacher

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
PICTURE = Image("picture.png", "abc")
ROLLOUTS = [
    Rollout([5, 6, 7][: 1 + i % 3], [10 + i + t for t in range(1 + i % 5)], [], "length")
    for i in range(20)
]


def truth(ids: list[int], place: int) -> float:
    """The log-prob that the scripted teacher gives to the token at a place of its prompt."""
    return -0.1 * place - 0.01 * ids[place]


def expected() -> list[float]:
    found = []
    for rollout in ROLLOUTS:
        ids = rollout.prompt_ids + rollout.response_ids
        found += [truth(ids, place) for place in range(len(rollout.prompt_ids), len(ids))]
    return found


def prompt_logprobs(body: dict[str, Any]) -> tuple[int, Any]:
    ids = body["prompt"]
    rows: list[Any] = [None]
    for place in range(1, len(ids)):
        others = {str(900 + k): {"logprob": -3.0 - k} for k in range(body["prompt_logprobs"])}
        rows.append({**others, str(ids[place]): {"logprob": truth(ids, place)}})
    return 200, {"choices": [{"index": 0, "prompt_logprobs": rows, "prompt_token_ids": ids}]}


def echo(body: dict[str, Any]) -> tuple[int, Any]:
    assert body["echo"] is True
    ids = body["prompt"]
    values = [None, *(truth(ids, place) for place in range(1, len(ids))), -0.5]
    return 200, {"choices": [{"index": 0, "logprobs": {"token_logprobs": values}}]}


def token_ids(body: dict[str, Any]) -> tuple[int, Any]:
    ids, sampling = body["token_ids"], body["sampling_params"]
    first = sampling["prompt_logprob_start"] + 1
    assert [[token] for token in ids[first:]] == sampling["prompt_logprob_token_ids"]
    packed = io.BytesIO()
    np.save(packed, np.array([[truth(ids, p)] for p in range(first, len(ids))], dtype=np.float32))
    return 200, {"prompt_token_id_logprobs": base64.b64encode(packed.getvalue()).decode()}


class Server:
    """Answers POSTs with a script, and counts them and how many were under way at once."""

    def __init__(self, answer: Answer) -> None:
        self.asked = self.running = self.most = 0
        self.models = ["teacher"]
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": name} for name in server.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked += 1
                    server.running += 1
                    server.most = max(server.most, server.running)
                try:
                    status, found = answer(body)
                finally:
                    with lock:
                        server.running -= 1
                self.send(status, found)

            def send(self, status: int, found: Any) -> None:
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                cut = status == 0  # a body that ends before its announced length
                self.send_response(200 if cut else status)
                self.send_header("Content-Length", str(len(data) + (50 if cut else 0)))
                self.end_headers()
                self.wfile.write(data)
                if cut:
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass  # a client that hung up

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def teacher(*urls: str, **settings: Any) -> ServerTeacher:
    fields = {"retries": 2, "timeout_seconds": 5.0, "concurrency": 4, **settings}
    config = TeacherConfig(kind="server", urls=list(urls), **fields)
    return ServerTeacher(Endpoints(config, list(urls), "teacher"), "teacher", config.interface)


SEEN = [
    Rollout([5, 1, 6][: 1 + i % 3], [10 + i + t for t in range(i % 4)], [], "length", images=images)
    for i in range(8)
    for images in [(PICTURE,) * [0, 1, 1][i % 3]]
]


def generate(room: int) -> Answer:
    """As vLLM, which gives every image (id 1) `room` tokens."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if not body:
            return 400, {"error": {"message": "token_ids: Field required"}}
        assert len(body["content_parts"]) == body["token_ids"].count(1)
        ids = [id_ for id_ in body["token_ids"] for _ in range(room if id_ == 1 else 1)]
        rows = [{str(ids[place]): {"logprob": truth(ids, place)}} for place in range(len(ids))]
        return 200, {
            "choices": [{"index": 0, "token_ids": [3]}],
            "prompt_logprobs": [None, *rows[1:]],
            "prompt_token_ids": ids,
        }

    return answer


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Pillow.new("RGB", (4, 4)).save(PICTURE.path)


@pytest.mark.parametrize("room", [1, 7])
def test_the_room_of_an_image_does_not_shift_the_scores(
    serve: Callable[[Answer], Server], picture: None, room: int
) -> None:
    found = teacher(serve(generate(room)).url).score(SEEN).logprobs_N
    wanted = []
    for rollout in SEEN:
        start = len(rollout.prompt_ids) + (room - 1) * len(rollout.images)
        wanted += [-0.1 * (start + t) - 0.01 * id_ for t, id_ in enumerate(rollout.response_ids)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_an_image_that_was_not_scored_as_it_was_sent(
    serve: Callable[[Answer], Server], picture: None
) -> None:
    seen = SEEN[1:2]
    for cut, message in (("prompt_token_ids", "other token"), ("prompt_logprobs", "rows for")):

        def answer(body: dict[str, Any], cut: str = cut) -> tuple[int, Any]:
            status, found = generate(3)(body)
            return status, {**found, cut: found.get(cut, [])[:-1]}

        with pytest.raises(MissingScore, match=message):
            teacher(serve(answer).url).score(seen)
    with pytest.raises(ConfigError, match="no images beside token ids"):
        teacher(serve(lambda body: (403, {})).url).score(seen)
    with pytest.raises(ConfigError, match="'echo' scores no images"):
        teacher(serve(echo).url, interface="echo").score(seen)


@pytest.mark.parametrize(
    ("interface", "answer"),
    [("prompt_logprobs", prompt_logprobs), ("echo", echo), ("token_ids", token_ids)],
)
def test_right_answers_in_any_order(
    serve: Callable[[Answer], Server], interface: str, answer: Answer
) -> None:
    delays = random.Random(1)

    def slowly(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(delays.random() * 0.02)
        return answer(body)

    server = serve(slowly)
    asked = teacher(server.url, interface=interface)
    assert asked.score(ROLLOUTS).logprobs_N.tolist() == pytest.approx(expected(), rel=1e-5)
    assert server.asked == len(ROLLOUTS) and 1 < server.most <= 4
    assert asked.score([]).logprobs_N.tolist() == []
    asked.close()


def test_the_likeliest_ids_come_sorted(serve: Callable[[Answer], Server]) -> None:
    asked = teacher(serve(prompt_logprobs).url)
    top = asked.score(ROLLOUTS, Needs(teacher=True, top_k=3)).distribution
    assert top is not None
    rows = zip(top.ids_NK.tolist(), top.logprobs_NK.tolist(), expected(), strict=True)  # type: ignore[union-attr]
    for ids, values, own in rows:
        assert values == pytest.approx([own, -3.0, -4.0], rel=1e-5)
        assert ids[1:] == [900, 901]


def test_late_and_busy_servers_are_asked_again(serve: Callable[[Answer], Server]) -> None:
    faults = iter(["late", "busy", "cut", "text", "list"])
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            fault = next(faults, "")
        if fault == "late":
            time.sleep(1.0)
        wrong = {
            "busy": (503, {}),
            "cut": (0, b'{"choi'),
            "text": (200, b"<html>"),
            "list": (200, []),
        }
        return wrong.get(fault) or prompt_logprobs(body)

    server = serve(answer)
    asked = teacher(server.url, timeout_seconds=0.5, retries=5, concurrency=1)
    assert asked.score(ROLLOUTS).logprobs_N.tolist() == pytest.approx(expected(), rel=1e-5)
    assert server.asked == len(ROLLOUTS) + 5


def test_a_refusal_is_passed_on_at_once(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda body: (400, {"error": {"message": "prompt_logprobs is too large"}}))
    with pytest.raises(Unanswered, match="400: prompt_logprobs is too large"):
        teacher(server.url, concurrency=1).score(ROLLOUTS[:1])
    assert server.asked == 1


def test_a_server_that_stays_busy_fails_the_step(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda body: (503, {"message": "loading"}))
    with pytest.raises(Unanswered, match=r"3 attempts.*503: loading.*teacher\.retries"):
        teacher(server.url).score(ROLLOUTS[:1])
    assert server.asked == 3


def change_row(row: Any) -> Answer:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        status, found = prompt_logprobs(body)
        rows = found["choices"][0]["prompt_logprobs"]
        token = str(body["prompt"][-1])
        rows[-1] = {token: {"logprob": row}} if isinstance(row, float) else row
        return status, found

    return answer


def change_choice(**values: Any) -> Answer:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        status, found = prompt_logprobs(body)
        found["choices"][0].update(values)
        return status, found

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (change_row(None), "has no score"),
        (change_row({"3": {"logprob": -1.0}}), r"has no score; ids \[3\]"),
        (change_row(float("nan")), "has the score nan"),
        (change_row(float("-inf")), "has the score -inf"),
        (change_row(-9999.0), "has the score -9999"),
        (change_row(7.5), "no log-prob"),
        (change_choice(prompt_logprobs=[None, {}]), "returned 2 rows"),
        (change_choice(prompt_logprobs=None), "returned no prompt_logprobs"),
        (change_choice(prompt_token_ids=[1, 2]), "other token ids"),
        (lambda body: (200, {"choices": []}), "0 choices"),
    ],
)
def test_a_missing_or_broken_score_never_becomes_0(
    serve: Callable[[Answer], Server], answer: Answer, message: str
) -> None:
    with pytest.raises(MissingScore, match=message):
        teacher(serve(answer).url).score(ROLLOUTS[4:5])


@pytest.mark.parametrize(
    ("interface", "answer", "message"),
    [
        ("echo", {"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}]}, "echoed 2 of"),
        ("echo", {"choices": [{}]}, "echoed 0 of"),
        ("token_ids", {}, "no prompt_token_id_logprobs"),
    ],
)
def test_the_other_interfaces_fail_closed_too(
    serve: Callable[[Answer], Server], interface: str, answer: Any, message: str
) -> None:
    asked = teacher(serve(lambda body: (200, answer)).url, interface=interface)
    with pytest.raises(MissingScore, match=message):
        asked.score(ROLLOUTS[4:5])


def test_token_ids_of_another_shape(serve: Callable[[Answer], Server]) -> None:
    packed = io.BytesIO()
    np.save(packed, np.zeros((1, 1), dtype=np.float32))
    answer = {"prompt_token_id_logprobs": base64.b64encode(packed.getvalue()).decode()}
    asked = teacher(serve(lambda body: (200, answer)).url, interface="token_ids")
    with pytest.raises(MissingScore, match=r"shape \(1, 1\)"):
        asked.score(ROLLOUTS[4:5])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_replica_is_left_out_and_all_dead_is_an_error(
    serve: Callable[[Answer], Server],
) -> None:
    dead, server = f"http://127.0.0.1:{free_port()}", serve(prompt_logprobs)
    asked = teacher(dead, server.url)
    assert asked.score(ROLLOUTS).logprobs_N.tolist() == pytest.approx(expected(), rel=1e-5)
    assert asked.endpoints.living() == [server.url] and server.asked == len(ROLLOUTS)
    alone = teacher(dead)
    with pytest.raises(Unanswered, match="cannot be reached"):
        alone.score(ROLLOUTS[:1])


def test_the_served_name(serve: Callable[[Answer], Server]) -> None:
    server = serve(prompt_logprobs)
    endpoints = teacher(server.url).endpoints
    assert served_name(endpoints) == served_name(endpoints, "teacher") == "teacher"
    with pytest.raises(Unanswered, match="not 'other'"):
        served_name(endpoints, "other")
    server.models = ["a", "b"]
    with pytest.raises(Unanswered, match=r"serves 2 models \(a, b\).*teacher\.served_name"):
        served_name(endpoints)


@pytest.mark.parametrize("answers", ["never", "busy"])
def test_a_stop_does_not_wait_for_a_server(answers: str, serve: Callable[[Answer], Server]) -> None:
    """Neither for an answer that does not come, nor for the pause before the next attempt."""
    over = threading.Event()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if answers == "never":
            over.wait(20.0)
        return 503, {}

    stop = threading.Event()
    asked = teacher(serve(answer).url, timeout_seconds=30.0, retries=10)
    asked.endpoints.should_stop = stop.is_set
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with pytest.raises(StopRequested):
        asked.score(ROLLOUTS)
    assert time.monotonic() - started < 2.0
    over.set()
