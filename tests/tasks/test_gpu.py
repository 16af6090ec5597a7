"""Slots: one job a device, across processes, freed by the death of the holder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks import gpu
from tasks.gpu import slot, slots
from tasks.launch import STOP, Interrupted


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")


def test_one_slot_a_gpu_else_one_a_core(monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> None:
    assert slots() == [
        ("gpu-3", {"CUDA_VISIBLE_DEVICES": "3"}),
        ("gpu-5", {"CUDA_VISIBLE_DEVICES": "5"}),
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [name for name, _ in slots()] == [f"cpu-{i}" for i in range(gpu._cores())]


def test_a_device_is_never_shared(two_gpus: None) -> None:
    held: list[str] = []
    most, lock = [0], threading.Lock()

    def work() -> None:
        with slot() as env:
            device = env["CUDA_VISIBLE_DEVICES"]
            with lock:
                assert device not in held
                held.append(device)
                most[0] = max(most[0], len(held))
            time.sleep(0.05)
            with lock:
                held.remove(device)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most[0] == 2 and not held


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


def test_a_stop_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    try:
        with slot():
            STOP.set()
            with pytest.raises(Interrupted, match="waiting for a free slot"), slot():
                pass
    finally:
        STOP.clear()
