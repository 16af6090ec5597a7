"""A server over HTTP that answers as vLLM does; tests script what it does otherwise."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


class FakeVLLM:
    """Answers as vLLM does; each token a function of the request's seed."""

    def __init__(self, tokenizer: Any, name: str = "student", root: str = "") -> None:
        self.tokenizer = tokenizer
        self.cards = [{"id": name, "root": root, "max_model_len": 64}]
        self.bodies: list[dict[str, Any]] = []
        self.change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda body, choice: None
        self.instead: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self.reads = True
        self.sees = True
        self.pictures: list[dict[str, Any]] = []
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"data": server.cards} if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    answer = server.tokenize(body)
                elif self.path == "/inference/v1/generate":
                    answer = server.generate(body)
                else:
                    assert self.path == "/v1/completions"
                    with lock:
                        server.bodies.append(body)
                    answer = server.instead(body) or (200, server.complete(body))
                self.send(*answer)

            def send(self, status: int, found: Any) -> None:
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *arguments: Any) -> None:
                pass  # a client that hung up

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Requests after the one that an engine looks at its server with."""
        return self.bodies[1:]

    def tokenize(self, body: dict[str, Any]) -> Answer:
        if not self.reads:
            return 404, {"detail": "Not Found"}
        assert body["add_special_tokens"] is False
        return 200, {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        rng = random.Random(body["seed"])
        ids: list[int] = []
        while len(ids) < body["max_tokens"] and (not ids or ids[-1] not in body["stop_token_ids"]):
            ids.append(rng.randrange(len(self.tokenizer)))
        stopped = ids[-1] in body["stop_token_ids"]
        choice = {
            "index": 0,
            "token_ids": ids,
            "logprobs": {"token_logprobs": [-0.5 - t for t in range(len(ids))]},
            "finish_reason": "stop" if stopped else "length",
        }
        self.change(body, choice)
        return {"choices": [choice]}

    def generate(self, body: dict[str, Any]) -> Answer:
        """Ids and images together, and other names for the same things."""
        if not self.sees:
            return 403, {"error": {"message": "Scale-out endpoints are disabled."}}
        if not body:
            return 400, {"error": {"message": "token_ids: Field required"}}
        self.pictures.append(body)
        (choice,) = self.complete(body["sampling_params"])["choices"]
        logprobs = choice["logprobs"]["token_logprobs"]
        choice["logprobs"] = {"content": [{"logprob": value} for value in logprobs]}
        return 200, {"choices": [choice]}

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
