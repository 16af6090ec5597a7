"""Budget forcing: a thought of an exact length, by ending it early or by not letting it end.

Muennighoff et al. 2025, s1 (arXiv 2501.19393); the rule is that of simplescaling/s1,
eval/lm-evaluation-harness/lm_eval/models/vllm_causallms.py. A thought that ends before its budget
may have its end suppressed and "Wait" appended; one that reaches it is closed and the answer
prompted for. Two things are done as the paper means them and not as that file does: a continuation
gets the budget that is left, not the whole again with a cut afterwards (issue 53, PR 120), and ids
that the tokenizer does not have are never fed back. All of it works on token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from evals.scaling.votes import majority_at_k
from reopold.config import ConfigError
from reopold.data.images import Image
from reopold.engines.base import SEED_LIMIT, Engine, EngineFailure
from reopold.rollouts import FinishReason, Rollout, SamplingParams

#: Last ids that are decoded to see whether a text ends with a newline.
TAIL = 8


@dataclass(frozen=True)
class Budget:
    """How long to think, in tokens.

    Raises:
        ConfigError: a budget without tokens, or no end of thought.
    """

    thinking_tokens: int
    """Most tokens of the thought: all that are sampled in it, suppressed ends among them, and the
    ignore texts that are appended."""
    answer_tokens: int
    """Most tokens that are sampled after the thought."""
    end_think: tuple[int, ...]
    """Ids of the end of a thought, such as those of `</think>`. EOS ends one too."""
    ignores: int = 0
    """Times that the end of a thought is suppressed while budget is left."""
    ignore_text: str = "Wait"
    """Appended in place of a suppressed end."""
    final_text: str = "\nFinal Answer:"
    """Appended after the end of a thought that the budget cut off: without it the model often goes
    on thinking in its answer (s1 issue 127)."""
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.thinking_tokens < 1 or self.answer_tokens < 1:
            raise ConfigError(
                f"a budget needs at least 1 token to think and 1 to answer, not "
                f"{self.thinking_tokens} and {self.answer_tokens}"
            )
        if self.ignores < 0:
            raise ConfigError(f"the end of a thought cannot be ignored {self.ignores} times")
        if not self.end_think:
            raise ConfigError("end_think is empty: give the token ids that end a thought")


@dataclass(frozen=True)
class Forced:
    """A response with a budget."""

    ids: list[int]
    """All that follows the prompt as the model saw it: thought, what was appended, answer."""
    thinking_tokens: int
    """Sampled by the model in its thought, ends of it (also suppressed ones) among them."""
    answer_tokens: int
    """Sampled by the model after its thought."""
    appended_tokens: int
    """Put into the response by us."""
    forced: bool
    """The budget closed the thought, not the model."""
    ignored: int
    """Ends of the thought that were suppressed."""
    finish_reason: FinishReason
    """Of the answer."""
    text: str
    """Of `ids`, special tokens included, without a closing EOS."""

    @property
    def tokens(self) -> int:
        """Sampled by the model, and so what the response cost."""
        return self.thinking_tokens + self.answer_tokens


def force_budget(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budget: Budget,
    tokenizer: Any,
    seeds: Sequence[int],
    *,
    images: Sequence[tuple[Image, ...]] | None = None,
) -> list[Forced]:
    """One response to every prompt, which should end where the thought begins.

    The first tokens are drawn with the sample's own seed, as plain sampling draws them; every
    continuation with one derived from it. A response depends on its prompt and seed alone.

    Raises:
        ConfigError: the tokenizer does not know a text that is to be appended.
        EngineFailure, StopRequested: as :meth:`reopold.engines.base.Engine.generate`.
    """
    rules = _Rules(budget, tokenizer)
    thoughts = [
        _Thought(list(prompt), seed, budget.thinking_tokens, shown)
        for prompt, seed, shown in zip(prompts, seeds, images or [()] * len(seeds), strict=True)
    ]
    while active := [thought for thought in thoughts if not thought.over]:
        fresh = [thought for thought in active if thought.fresh]
        others = [thought for thought in active if not thought.fresh]
        for group in (fresh, others):
            for thought, rollout in zip(group, rules.think(engine, group), strict=True):
                rules.take(thought, rollout)
    if not thoughts:
        return []
    for thought in thoughts:
        rules.close(thought)
    params = SamplingParams(budget.answer_tokens, budget.temperature, top_p=budget.top_p)
    answers = engine.generate(
        [thought.prompt + thought.ids for thought in thoughts],
        params,
        seeds=[thought.next_seed() for thought in thoughts],
        images=[thought.images for thought in thoughts],
    )
    return [rules.result(*pair) for pair in zip(thoughts, answers, strict=True)]


def truncated(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budget: Budget,
    tokenizer: Any,
    seeds: Sequence[int],
) -> list[Forced]:
    """The control without forcing: plain samples, cut off at the same budget of all their tokens.

    A response whose thought the cut ends has no answer. Seeds are as in :func:`force_budget`.
    """
    most = budget.thinking_tokens + budget.answer_tokens
    params = SamplingParams(most, budget.temperature, top_p=budget.top_p)
    found = []
    for rollout in engine.generate(prompts, params, seeds=seeds):
        thinking = _end_of_thought(rollout.response_ids, budget.end_think)
        ids = [token for token in rollout.response_ids if token < len(tokenizer)]
        found.append(
            Forced(
                ids=ids,
                thinking_tokens=thinking,
                answer_tokens=len(rollout.response_ids) - thinking,
                appended_tokens=0,
                forced=False,
                ignored=0,
                finish_reason=rollout.finish_reason,
                text=_text(ids, tokenizer),
            )
        )
    return found


@dataclass(frozen=True)
class Parallel:
    """A majority vote that costs what one long thought does."""

    k: int
    """Samples a vote."""
    tokens: float
    """That k samples of a question cost, on average: not more than was asked for, unless one
    sample alone is dearer; less where there are too few samples."""
    majority: float
    """maj@k, mean over the questions."""


def parallel_control(
    tokens: float,
    samples: Sequence[Sequence[int]],
    answers: Sequence[Sequence[str | None]],
    golds: Sequence[str],
) -> Parallel:
    """The control that spends the same tokens on a vote among short thoughts.

    Args:
        tokens: mean tokens a question of what it is compared with (:attr:`Forced.tokens`).
        samples: tokens of each plain sample of each question.
        answers: their extracted answers, as :func:`evals.scaling.majority_at_k` takes them.
        golds: right answer of each question.

    Raises:
        ValueError: no questions, one without samples, or lengths that do not fit.
    """
    pairs = list(zip(samples, answers, golds, strict=True))
    if not pairs or any(not lengths or len(lengths) != len(found) for lengths, found, _ in pairs):
        raise ValueError("every question needs samples, and each of them a length and an answer")
    one = fmean(fmean(lengths) for lengths in samples)
    available = min(len(lengths) for lengths in samples)
    # 100 tokens are three samples of 33 1/3, whatever the last bit of the quotient says.
    k = max(1, min(int(tokens / one + 1e-9), available))
    majority = fmean(majority_at_k(found, gold, k) for _, found, gold in pairs)
    return Parallel(k, k * one, majority)


@dataclass
class _Thought:
    prompt: list[int]
    seed: int
    left: int
    """Of the budget."""
    images: tuple[Image, ...] = ()
    """Of the prompt."""
    ids: list[int] = field(default_factory=list)
    """The thought so far, as it is fed back."""
    start: int = 0
    """Where in `ids` the model's own words since the last appended text begin."""
    sampled: int = 0
    appended: int = 0
    ignored: int = 0
    calls: int = 0
    fresh: bool = True
    """The next token is the first of the thought, or the first after an ignored end."""
    over: bool = False
    forced: bool = False
    ended_by_mark: bool = False

    def next_seed(self) -> int:
        self.calls += 1
        if self.calls == 1:
            return self.seed
        name = f"{self.seed}/{self.calls}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8]) % SEED_LIMIT


class _Rules:
    """The two phases, for one budget."""

    def __init__(self, budget: Budget, tokenizer: Any) -> None:
        self.budget, self.tokenizer, self.vocab_size = budget, tokenizer, len(tokenizer)
        self.ignore = self._encode(budget.ignore_text) if budget.ignores else []
        self.newline, self.final = self._encode("\n"), self._encode(budget.final_text)

    def think(self, engine: Engine, thoughts: Sequence[_Thought]) -> list[Rollout]:
        """Go on with thoughts that are all fresh, or none of them.

        A response ends with the last id of the mark, so that nothing is sampled beyond it. Where
        the ids before it are not the mark's, the thought goes on after it.
        """
        if not thoughts:
            return []
        # Where ends are ignored, a thought may not end before its first token (s1's min_tokens).
        least = int(thoughts[0].fresh and self.budget.ignores > 0)
        params = SamplingParams(
            max(thought.left for thought in thoughts),
            self.budget.temperature,
            top_p=self.budget.top_p,
            stop_ids=(self.budget.end_think[-1],),
            min_new_tokens=least,
        )
        return engine.generate(
            [thought.prompt + thought.ids for thought in thoughts],
            params,
            seeds=[thought.next_seed() for thought in thoughts],
            limits=[thought.left for thought in thoughts],
            images=[thought.images for thought in thoughts],
        )

    def take(self, thought: _Thought, rollout: Rollout) -> None:
        """Add what was sampled; suppress an end, or note that the thought is over."""
        new = rollout.response_ids
        if not 0 < len(new) <= thought.left:
            raise EngineFailure(
                f"an engine returned {len(new)} tokens where {thought.left} were allowed"
            )
        thought.sampled += len(new)
        thought.left -= len(new)
        thought.ids += [token for token in new if token < self.vocab_size]
        thought.fresh = False
        mark = list(self.budget.end_think)
        if rollout.finish_reason == "stop" and thought.ids[thought.start :][-len(mark) :] == mark:
            self._end(thought, len(mark), by_mark=True)
        elif rollout.finish_reason == "stop" and new[-1] == self.tokenizer.eos_token_id:
            self._end(thought, 1, by_mark=False)
        elif not thought.left:
            thought.over = thought.forced = True

    def close(self, thought: _Thought) -> None:
        """What stands between a thought that is over and the answer."""
        mark = list(self.budget.end_think)
        if not thought.forced:
            thought.ids += mark
            thought.appended += 0 if thought.ended_by_mark else len(mark)
            return
        tail = self.tokenizer.decode((thought.prompt + thought.ids)[-TAIL:])
        closing = [*([] if tail.endswith("\n") else self.newline), *mark, *self.final]
        thought.ids += closing
        thought.appended += len(closing)

    def result(self, thought: _Thought, answer: Rollout) -> Forced:
        ids = thought.ids + [token for token in answer.response_ids if token < self.vocab_size]
        return Forced(
            ids=ids,
            thinking_tokens=thought.sampled,
            answer_tokens=len(answer.response_ids),
            appended_tokens=thought.appended,
            forced=thought.forced,
            ignored=thought.ignored,
            finish_reason=answer.finish_reason,
            text=_text(ids, self.tokenizer),
        )

    def _end(self, thought: _Thought, length: int, *, by_mark: bool) -> None:
        """The model ended its thought with so many ids, which are taken away again."""
        del thought.ids[-length:]
        if thought.ignored == self.budget.ignores or thought.left <= len(self.ignore):
            thought.over, thought.ended_by_mark = True, by_mark
            return
        thought.ids += self.ignore
        thought.left -= len(self.ignore)
        thought.appended += len(self.ignore)
        thought.start, thought.fresh = len(thought.ids), True
        thought.ignored += 1

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            raise ConfigError(f"the tokenizer does not know some of {text!r}, which is appended")
        return ids


def _end_of_thought(ids: Sequence[int], mark: Sequence[int]) -> int:
    """Length of a thought with its mark, at the first place of the mark; all ids without one."""
    for start in range(len(ids) - len(mark) + 1):
        if list(ids[start : start + len(mark)]) == list(mark):
            return start + len(mark)
    return len(ids)


def _text(ids: Sequence[int], tokenizer: Any) -> str:
    """Special tokens stay: the marks of a thought may be some."""
    kept = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    return str(tokenizer.decode(list(kept), skip_special_tokens=False))
