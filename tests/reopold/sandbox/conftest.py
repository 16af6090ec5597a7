"""Nothing outlives the tests of the sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.reopold.sandbox.surroundings import marked_files, marked_processes, mounts


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """No process, file, mount or descriptor outlives a module of these tests."""
    before = mounts()
    yield
    deadline = time.monotonic() + 5
    while marked_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked_processes() == []
    assert marked_files() == []
    assert mounts() == before
