"""vLLM's OpenAI server, which ends with the process that started it: `python serve.py OPTIONS`."""

import runpy

import reopold_worker

if __name__ == "__main__":  # vLLM's own children import this file too
    reopold_worker.die_with_owner()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
