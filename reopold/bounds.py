"""What the work holds itself to and the estimate counts with. Importable without torch."""

from __future__ import annotations

#: FLOPs a parameter and position: forward a multiply and an add, backward twice that.
FORWARD, BACKWARD = 2, 4
#: Logits that are whole in memory at once: 39 MB of float32 on a CPU (64 tokens of 152k ids), eight
#: times that on a GPU, whose products want more rows.
CHUNK_LOGITS = {"cpu": 64 * 152_064, "cuda": 512 * 152_064}
#: Keys and values of one batch of the Hugging Face engine.
CACHE_BYTES = 8 * 2**30
#: Of vLLM teachers: rows whose scores over the whole vocabulary exist at once. prompt_logprobs took
#: 7.5 GiB at 8,192 tokens of 152k ids (vllm PR 52054).
SCORED_TOKENS = 2048
