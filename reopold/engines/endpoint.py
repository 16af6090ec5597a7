"""An OpenAI-compatible server over HTTP: bounded concurrency, retries, and clear failures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from reopold.config import ServingConfig
from reopold.engines.base import EngineFailure
from reopold.stopping import ShouldStop, check, never

#: Worth another attempt: busy, restarting, timed out. Anything else is the request's own fault.
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Seconds before the second attempt; doubled for each further one, up to the limit.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Between two looks at whether a stop is asked for.
POLL_SECONDS = 0.2

COMPLETIONS = "/v1/completions"

Answer = TypeVar("Answer")


class Unanswered(EngineFailure):
    """No server gave a usable answer, after every retry."""


@dataclass
class Endpoints:
    """Replicas of one served model. A replica that died is left out until it is asked for by name.

    Each request goes to the living replica with the fewest under way.
    """

    config: ServingConfig
    urls: list[str]
    who: str
    """For messages: "engine" or "teacher"."""
    should_stop: ShouldStop = never
    clients: dict[str, httpx.Client] = field(init=False)
    busy: dict[str, int] = field(init=False)
    dead: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=self.config.concurrency)
        self.clients = {
            # No proxy of the environment: a local server must be reached directly.
            url: httpx.Client(
                base_url=url, timeout=self.config.timeout_seconds, limits=limits, trust_env=False
            )
            for url in self.urls
        }
        self.busy = dict.fromkeys(self.urls, 0)
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix=self.who)

    def map(
        self,
        requests: Sequence[dict[str, Any]],
        parse: Callable[[int, dict[str, Any]], Answer],
        *,
        path: str = COMPLETIONS,
    ) -> Iterator[tuple[int, Answer]]:
        """POST every request; (place, parsed answer) as they come in.

        Raises:
            Unanswered: a request failed after every retry; requests not yet sent are dropped.
            StopRequested: a stop was asked for; nobody waits for the requests that are under way.
        """

        def one(place: int) -> tuple[int, Answer]:
            return place, parse(place, self.post(path, requests[place]))

        running: set[Future[tuple[int, Answer]]] = {
            self.pool.submit(one, place) for place in range(len(requests))
        }
        try:
            while running:
                check(self.should_stop)
                done, running = wait(running, POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request, to whichever replica is free; the JSON object that came back."""
        reason = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                self._pause(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            url = self._choose()
            try:
                return self.post_to(url, path, body)
            except httpx.ConnectError as error:
                reason = f"{url} cannot be reached: {error}"
                self._mark_dead(url)
            except httpx.HTTPStatusError as error:
                reason = f"{url} answered {_status(error)}"
                if error.response.status_code not in RETRIED_STATUS:
                    raise Unanswered(f"the {self.who}'s server {reason}") from error
            except (httpx.HTTPError, ValueError) as error:
                reason = f"{url}: {type(error).__name__}: {error}"
            finally:
                with self.lock:
                    self.busy[url] -= 1
        raise Unanswered(
            f"the {self.who}'s server gave no answer in {self.config.retries + 1} attempts; the "
            f"last: {reason}. Raise {self.who}.retries or {self.who}.timeout_seconds if it is slow"
        )

    def post_to(
        self, url: str, path: str, body: dict[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """One attempt at one replica.

        Raises:
            httpx.HTTPError, ValueError: it failed, or the answer is no JSON object.
        """
        seconds = self.config.timeout_seconds if timeout is None else timeout
        response = self.clients[url].post(path, json=body, timeout=seconds)
        response.raise_for_status()
        if not response.content:  # vLLM's housekeeping answers with nothing
            return {}
        answer = json.loads(response.content)
        if not isinstance(answer, dict):
            raise ValueError(f"answered with {type(answer).__name__}, not a JSON object")
        return answer

    def ask(self, url: str, path: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        """:meth:`post_to`, whose every failure is Unanswered."""
        try:
            return self.post_to(url, path, body, timeout)
        except httpx.HTTPStatusError as error:
            raise Unanswered(f"the {self.who}'s server {url} answered {_status(error)}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise Unanswered(f"the {self.who}'s server {url}{path}: {error}") from error

    def get(self, path: str, url: str = "") -> Any:
        """JSON of a GET at this replica, by default the first living one."""
        url = url or self.living()[0]
        try:
            response = self.clients[url].get(path)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unanswered(f"the {self.who}'s server {url}{path}: {error}") from error

    def living(self) -> list[str]:
        alive = [url for url in self.urls if url not in self.dead]
        if not alive:
            raise Unanswered(f"no {self.who} server is left of {', '.join(self.urls)}")
        return alive

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for client in self.clients.values():
            client.close()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            check(self.should_stop)
            time.sleep(min(seconds, POLL_SECONDS))

    def _choose(self) -> str:
        with self.lock:
            alive = [url for url in self.urls if url not in self.dead] or self.urls
            url = min(alive, key=self.busy.__getitem__)
            self.busy[url] += 1
        return url

    def _mark_dead(self, url: str) -> None:
        """Leave a replica out while others live; the last one is asked again and again."""
        with self.lock:
            if len(self.urls) - len(self.dead) > 1:
                self.dead.add(url)


def served_name(endpoints: Endpoints, wanted: str = "") -> str:
    """The name to ask for: the one wanted, or the only one that is served.

    Raises:
        Unanswered: the servers do not answer, or serve other models.
    """
    names = [str(model["id"]) for model in endpoints.get("/v1/models").get("data", [])]
    if wanted and wanted not in names:
        raise Unanswered(f"{endpoints.urls[0]} serves {', '.join(names)}, not {wanted!r}")
    if not wanted and len(names) != 1:
        raise Unanswered(
            f"{endpoints.urls[0]} serves {len(names)} models ({', '.join(names)}): say which one "
            f"with {endpoints.who}.served_name"
        )
    return wanted or names[0]


def _status(error: httpx.HTTPStatusError) -> str:
    """Status and the server's own words."""
    try:
        body = error.response.json()
        message = (body.get("error") or {}).get("message") or body.get("message") or body
    except (ValueError, AttributeError):
        message = error.response.text
    return f"{error.response.status_code}: {str(message)[:500]}"
