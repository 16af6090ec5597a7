"""What runs inside vLLM's processes: new weights in, and the end when the trainer ends.

Imported by vLLM by name from this folder, which alone is put on a server's path: a server of its
own environment needs neither REOPOLD nor the trainer's packages, so nothing is imported from them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

#: Process that owns the engine; unset for a server that is nobody's child.
OWNER = "REOPOLD_OWNER_PID"


def die_with_owner() -> None:
    """End this process as soon as the owner is gone, even by SIGKILL.

    A pidfd names the process and not its number, and wakes its waiter: nothing is polled.
    """
    owner = os.environ.get(OWNER)
    if owner is None or int(owner) == os.getpid():
        return
    try:
        handle = os.pidfd_open(int(owner))
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)

    def wait() -> None:
        select.select([handle], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="owner-watch", daemon=True).start()


die_with_owner()


class ReopoldWorker:
    """A vLLM `worker_extension_cls`: methods that every worker of the engine gains."""

    model_runner: Any
    reopold_version = 0

    def reopold_load(self, folder: str, version: int) -> dict[str, Any]:
        """Take the weights of a checkpoint folder that :mod:`reopold.engines.export` wrote.

        The folder's own `weights.json` says which version it holds: a path that another step has
        written over meanwhile is found out.
        """
        from safetensors import safe_open

        def weights() -> Iterable[tuple[str, torch.Tensor]]:
            for file in sorted(Path(folder).glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  # not a mapping
                        yield name, tensors.get_tensor(name)

        written = json.loads((Path(folder) / "weights.json").read_text(encoding="utf-8"))
        if int(written["version"]) != int(version):
            raise ValueError(f"{folder} holds version {written['version']}, not {version}")
        return self.reopold_load_tensors(weights(), int(version))

    def reopold_load_tensors(
        self, weights: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> dict[str, Any]:
        """Take weights by their checkpoint names, the output head among them."""
        self.model_runner.reload_weights(weights_iterator=iter(weights))
        self.reopold_version = version
        return self.reopold_state()

    def reopold_state(self) -> dict[str, Any]:
        """What the worker holds, to be compared with what the trainer meant it to hold."""
        language = self.reopold_language_model()
        head = language.lm_head.weight
        every = self.model_runner.get_model().named_parameters(remove_duplicate=False)
        return {
            "version": self.reopold_version,
            "tied": sum(weight.data_ptr() == head.data_ptr() for _, weight in every) > 1,
            "vocab_size": language.logits_processor.org_vocab_size,
            # Padding rows are zero, so that the sums of all shards add up to the whole head's.
            "head_sum": float(head.detach().double().abs().sum()),
        }

    def reopold_real_vocabulary(self, size: int) -> None:
        """Leave the padding rows of the head out of every softmax."""
        self.reopold_language_model().logits_processor.org_vocab_size = int(size)

    def reopold_language_model(self) -> Any:
        """What holds the output head: the model itself, or a part of a vision-language one."""
        model = self.model_runner.get_model()
        return model if hasattr(model, "lm_head") else model.get_language_model()
