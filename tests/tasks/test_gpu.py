"""Slots: one job a device, across processes, freed by the death of the holder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reopold.config import ConfigError
from tasks import gpu
from tasks.gpu import held, slot, slots, stale_leases
from tasks.launch import STOP, Interrupted
from tests.conftest import REPO


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")


def test_one_slot_a_gpu_else_one_a_core(monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> None:
    assert slots() == ["gpu-3", "gpu-5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots() == [f"cpu-{i}" for i in range(gpu._cores())]


def test_a_job_takes_all_its_gpus_at_once(monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> None:
    order: list[str] = []

    def both() -> None:
        with slot(gpus=2) as mine:
            order.append(mine.env["CUDA_VISIBLE_DEVICES"])
            assert len(mine.handles) == 2 and held() == {"gpu-3": True, "gpu-5": True}

    with slot() as mine:
        assert mine.env["CUDA_VISIBLE_DEVICES"] == "3"
        waiting = threading.Thread(target=both)
        waiting.start()
        time.sleep(0.5)
        # It holds no part of what it waits for.
        assert order == [] and held() == {"gpu-3": True, "gpu-5": False}
    waiting.join(20)
    assert order == ["3,5"]
    with pytest.raises(ConfigError, match="on 3 GPUs and 2 can be seen"), slot(gpus=3):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with slot(gpus=3) as mine:  # on a CPU the servers share the cores
        assert len(mine.handles) == 1 and mine.env["CUDA_VISIBLE_DEVICES"] == ""


def test_a_device_is_never_shared(two_gpus: None) -> None:
    taken: list[str] = []
    most, lock = [0], threading.Lock()

    def work() -> None:
        with slot() as mine:
            device = mine.env["CUDA_VISIBLE_DEVICES"]
            with lock:
                assert device not in taken
                taken.append(device)
                most[0] = max(most[0], len(taken))
            time.sleep(0.05)
            with lock:
                taken.remove(device)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most[0] == 2 and not taken


def test_another_process_keeps_its_slot_until_it_dies(
    monkeypatch: pytest.MonkeyPatch, state_home: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\nfrom tasks.gpu import slot\n"
            "with slot():\n print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    got = threading.Event()

    def wait() -> None:
        with slot():
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.5)
    holder.kill()
    holder.wait()
    assert got.wait(5)
    thread.join()


def test_a_job_keeps_the_device_that_its_dead_launcher_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A trainer that is still saving must not share its GPU with the next one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPO)]))
    (tmp_path / "saving.py").write_text(
        "import pathlib, sys, time\n"
        "busy = pathlib.Path(sys.argv[1]); busy.touch()\n"
        "while busy.exists(): time.sleep(0.05)"
    )
    code = (
        "import pathlib, sys\nfrom tasks.gpu import slot\nfrom tasks.launch import run_module\n"
        "with slot() as mine:\n"
        " run_module('saving', sys.argv[1], log=pathlib.Path(sys.argv[2]),"
        " keep_open=mine.handles)"
    )
    busy = tmp_path / "busy"
    command = [sys.executable, "-c", code, str(busy), str(tmp_path / "log")]
    launcher = subprocess.Popen(command)
    while not busy.exists():
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert held() == {"gpu-0": True}
    busy.unlink()
    deadline = time.monotonic() + 10
    while held()["gpu-0"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held() == {"gpu-0": False}


def test_a_lease_in_a_file_that_nobody_holds_is_stale(two_gpus: None) -> None:
    with slot() as mine:
        mine.slots[0].record("0123")
        assert held() == {"gpu-3": True, "gpu-5": False}
        assert stale_leases() == {}
    assert stale_leases() == {"gpu-3": "0123"}
    with slot() as mine:
        mine.slots[0].record("")
    assert stale_leases() == {}


def test_a_stop_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    try:
        with slot():
            STOP.set()
            with pytest.raises(Interrupted, match="waiting for a free slot"), slot():
                pass
    finally:
        STOP.clear()
