"""vLLM's OpenAI server, which ends with the process that started it: `python serve.py OPTIONS`."""

import runpy
import sys
from importlib.util import find_spec

import reopold_worker


def sees(model: str) -> bool:
    """Whether a checkpoint takes images."""
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(model), "vision_config", None) is not None


if __name__ == "__main__":  # vLLM's own children import this file too
    reopold_worker.die_with_owner()
    if sees(sys.argv[sys.argv.index("--model") + 1]):
        sys.argv += ["--enable-scale-out"]  # where images go in beside token ids
        if find_spec("torchvision") is None:
            # vLLM's own models of vision import it; those of transformers do without.
            sys.argv += ["--model-impl", "transformers"]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
