"""A tokenizer of bytes, an engine that says what it is told to, and worlds that answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reopold.dialogues import Dialogue, DialogueRequest, run_dialogues, turn_seed
from reopold.engines.base import OnFinished, check_limits
from reopold.environments.base import Environment, Observation
from reopold.rollouts import Rollout, SamplingParams
from reopold.stopping import ShouldStop, never

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Tokens of more than one byte: two of them straddle the beginning of a mark.
LONG = ("```", "\n```", "output", "x```ou", "tput\n")


def byte_tokenizer() -> Any:
    """A token a byte, some longer ones, and a chat template of Qwen's kind."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in LONG])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZER = byte_tokenizer()
EOS: int = TOKENIZER.eos_token_id
OUTPUT = "```output\n4\n```\n"


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def spelt(*parts: str) -> list[int]:
    """Ids of these tokens; longer parts byte by byte."""
    ids: list[int] = []
    for part in parts:
        known = TOKENIZER.convert_tokens_to_ids(part) if part in LONG else None
        ids += [known] if known is not None else encode_bytes(part)
    return ids


def encode_bytes(text: str) -> list[int]:
    backend = TOKENIZER.backend_tokenizer.model
    letters = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)[0][0]
    return [backend.token_to_id(letter) for letter in letters]


@dataclass
class ScriptedEngine:
    """Turn k of dialogue d says script[d][k]: both are told from the seed alone."""

    scripts: Sequence[Sequence[Sequence[int]]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    image_token_id: int | None = None
    between: Callable[[], None] | None = None
    """Called after the first rollout of a batch was given out."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        limits: Sequence[int] | None = None,
        images: Any = None,
        on_finished: OnFinished,
    ) -> list[Rollout]:
        self.asked.append(
            {
                "prompts": prompts,
                "params": params,
                "seeds": seeds,
                "limits": limits,
                "images": images,
            }
        )
        places = {
            turn_seed(100 + d, k): (d, k) for d, s in enumerate(self.scripts) for k in range(len(s))
        }
        rollouts = []
        bounds = check_limits(prompts, params, limits)
        for prompt, seed, limit in zip(prompts, seeds, bounds, strict=True):
            d, k = places[seed]
            ids = list(self.scripts[d][k])
            whole = len(ids) <= limit and ids[-1:] == [EOS]
            reason: Any = "stop" if whole else "length"
            logprobs = [logprob(seed, i) for i in range(len(ids))]
            rollouts.append(Rollout(list(prompt), ids[:limit], logprobs[:limit], reason))
        for place in reversed(range(len(rollouts))):
            on_finished(place, rollouts[place])
            if self.between is not None and place == len(rollouts) - 1:
                self.between()
        return rollouts


def logprob(seed: int, place: int) -> float:
    """What the engine says of the token at a place of a turn."""
    return -1.0 - (seed % 997) - place / 1024


@dataclass
class World(Environment):
    """Says the scripted observations in turn, then that the message was an answer."""

    script: list[Observation | Exception]
    heard: list[str] = field(default_factory=list)
    closed: int = 0
    verdict: float | None = None

    def act(self, message: str) -> Observation:
        self.heard.append(message)
        said = self.script[len(self.heard) - 1] if len(self.heard) <= len(self.script) else ANSWER
        if isinstance(said, Exception):
            raise said
        return said

    def outcome(self) -> float | None:
        return self.verdict

    def close(self) -> None:
        self.closed += 1


ANSWER = Observation("", done=True)


def says(text: str = "4", failed: int = 0) -> Observation:
    return Observation(text, done=False, calls=1, failed=failed)


def turn(text: str) -> list[int]:
    return [*encode(text), EOS]


PROMPT = encode("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n")


def lead(
    scripts: Sequence[Sequence[Sequence[int]]],
    worlds: Sequence[World],
    *,
    style: Any = "tool_call",
    max_turns: int = 9,
    max_tokens: int = 10_000,
    tool_seconds: float = 60.0,
    should_stop: ShouldStop = never,
    params: SamplingParams | None = None,
    engine: ScriptedEngine | None = None,
    on_finished: Callable[[int, Dialogue], None] | None = None,
) -> list[Dialogue]:
    return run_dialogues(
        engine or ScriptedEngine(scripts),  # type: ignore[arg-type]
        TOKENIZER,
        [DialogueRequest(PROMPT, 100 + d) for d in range(len(scripts))],
        params or SamplingParams(2000),
        lambda place: worlds[place],
        style=style,
        max_turns=max_turns,
        max_tokens=max_tokens,
        tool_seconds=tool_seconds,
        should_stop=should_stop,
        on_finished=on_finished,
    )
