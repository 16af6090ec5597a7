"""Studies to report on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import Synthetic, write_study


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, three seeds, all finished. Only for tests that change nothing but report/."""
    return write_study(tmp_path_factory.mktemp("studies") / "finished", Synthetic())


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[[Synthetic], Path]:
    """A study of one's own, to break."""
    return lambda what: write_study(tmp_path / "study", what)
