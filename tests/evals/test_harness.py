"""What lm-eval is handed and what is kept of it: prompts as ids, seeds, every repeat."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing

from evals.benchmarks import find
from evals.benchmarks.base import Problem
from evals.benchmarks.problems import load_problems
from evals.harness.adapter import EngineLM, sample_seed
from evals.harness.journal import Generation, Journal, SampleKey
from evals.harness.sampler import AnswerSampler, Request
from evals.harness.task import Question, run_benchmark
from evals.scores import METRICS
from reopold.answers.thinking import answer_text
from reopold.config import EvaluationConfig
from reopold.data.tokenizers import render
from reopold.rollouts import Rollout, SamplingParams

MICRO = find("micro_maths")


def problems_of(settings: EvaluationConfig) -> list[Problem]:
    return load_problems(MICRO, settings.data).problems


def run(
    settings: EvaluationConfig,
    engine: Any,
    problems: list[Problem] | None = None,
    folder: Path | None = None,
) -> list[Question]:
    """Through lm-eval, with the scripted engine of conftest.py."""
    sampler = AnswerSampler(engine, engine.tokenizer, settings.batch_size)
    journal = Journal(folder, "this evaluation")
    try:
        return run_benchmark(MICRO, problems or problems_of(settings), settings, sampler, journal)
    finally:
        journal.close()


def problem(name: str) -> Problem:
    messages = [{"role": "user", "content": "1+1="}]
    return Problem(name, messages, {"id": name, "prompt": messages, "answer": "2"}, "2")


def request(doc_id: str, **wanted: Any) -> Instance:
    kwargs = {"max_gen_toks": 4, "temperature": 1.0, "until": []} | wanted
    return Instance(
        "generate_until", {"id": doc_id}, ("<|user|>1+1=", kwargs), 0, ("micro_maths", 0, 1)
    )


def test_prompts_are_the_chat_template_s_ids(
    settings: EvaluationConfig, scripted_engine: Any
) -> None:
    questions = run(settings, scripted_engine)
    expected = [
        tuple(
            scripted_engine.tokenizer.apply_chat_template(
                question.problem.messages, add_generation_prompt=True, tokenize=True
            )["input_ids"]
        )
        for question in questions
    ]
    asked = [prompt for prompt, _ in scripted_engine.asked]
    assert asked == [prompt for prompt in expected for _ in range(settings.samples)]


def test_no_special_token_is_added_to_a_rendered_prompt(
    checkpoint: Path, scripted_engine: Any
) -> None:
    from transformers import AutoTokenizer

    adding: Any = AutoTokenizer.from_pretrained(checkpoint)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", adding.eos_token_id)]
    )
    assert adding.encode("1")[0] == adding.eos_token_id  # the trap is set
    messages = [{"role": "user", "content": "1+2*3="}]
    ids = render(adding, messages)
    wanted = adding.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert ids == wanted["input_ids"]


def test_every_sample_has_its_own_seed(settings: EvaluationConfig, scripted_engine: Any) -> None:
    questions = run(settings, scripted_engine)
    seeds = [seed for _, seed in scripted_engine.asked]
    assert len(seeds) == len(questions) * settings.samples == len(set(seeds))
    assert all(0 <= seed < 2**63 for seed in seeds)
    expected = [
        sample_seed(settings.seed, question.problem.id, repeat)
        for question in questions
        for repeat in range(settings.samples)
    ]
    assert seeds == expected
    other = run(settings.model_copy(update={"seed": 9}), scripted_engine)
    assert responses(other) != responses(questions)


def test_seeds_differ_in_each_part_of_their_name() -> None:
    names = [(s, q, r) for s in (0, 1, 11) for q in ("1", "11", "1/1") for r in (0, 1, 11)]
    assert len({sample_seed(*name) for name in names}) == len(names)


def responses(questions: list[Question]) -> dict[str, list[str]]:
    return {q.problem.id: [sample.generation.text for sample in q.samples] for q in questions}


@pytest.mark.parametrize("batch_size", [1, 5, 36, 1000])
def test_samples_depend_on_neither_batch_nor_order(
    settings: EvaluationConfig, scripted_engine: Any, batch_size: int
) -> None:
    questions = run(settings, scripted_engine)
    problems = problems_of(settings)
    random.Random(batch_size).shuffle(problems)
    changed = settings.model_copy(update={"batch_size": batch_size})
    scripted_engine.batches.clear()
    assert responses(run(changed, scripted_engine, problems)) == responses(questions)
    total, batches = len(problems) * settings.samples, scripted_engine.batches
    assert sum(batches) == total and max(batches) == min(batch_size, total)


def test_every_repeat_is_graded_and_kept(settings: EvaluationConfig, scripted_engine: Any) -> None:
    questions, tokenizer = run(settings, scripted_engine), scripted_engine.tokenizer
    assert [len(question.samples) for question in questions] == [settings.samples] * 12
    statuses: Counter[str] = Counter()
    for question in questions:
        for repeat, sample in enumerate(question.samples):
            seed = sample_seed(settings.seed, question.problem.id, repeat)
            rollout = scripted_engine.answer([], seed)
            ids = [i for i in rollout.response_ids if i != tokenizer.eos_token_id]
            assert sample.generation.text == "".join(tokenizer.convert_ids_to_tokens(ids))
            assert sample.generation.finish_reason == rollout.finish_reason
            assert sample.generation.tokens == len(rollout.response_ids)
            assert (rollout.finish_reason == "length") == (sample.verdict.status == "no_answer")
            statuses[sample.verdict.status] += 1
    assert set(statuses) == {"ok", "wrong", "no_answer"}  # the case is not vacuous


def test_metrics_of_each_question(settings: EvaluationConfig, scripted_engine: Any) -> None:
    problems = problems_of(settings)
    for i, problem in enumerate(problems):
        problem.row["answer"] = str(i % 4)  # the scripted answers are 0 to 3
    questions = run(settings.model_copy(update={"samples": 8}), scripted_engine, problems)
    for question in questions:
        right = [sample.verdict.correct for sample in question.samples]
        votes = Counter(s.verdict.extracted for s in question.samples if s.verdict.extracted)
        best = max(votes.values(), default=0)
        winners = [answer for answer, count in votes.items() if count == best]
        majority = (question.problem.row["answer"] in winners) / max(1, len(winners))
        expected = (sum(right) / len(right), float(any(right)), majority)
        assert [question.values[metric] for metric in METRICS] == pytest.approx(expected)
    values = [question.values for question in questions]
    assert len({tuple(value.values()) for value in values}) > 2


def test_only_generation_is_offered(scripted_engine: Any) -> None:
    sampler = AnswerSampler(scripted_engine, scripted_engine.tokenizer, 4)
    lm = EngineLM(sampler, {"a": problem("a"), "b": problem("b")}, Journal(None, ""), seed=0)
    for method in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])
    with pytest.raises(ValueError, match="stop strings"):
        lm.generate_until([request("a", until=["\n"])])
    with pytest.raises(ValueError, match="not supported: top_k"):
        lm.generate_until([request("a", top_k=9)])
    with pytest.raises(ValueError, match="one generation setting"):
        lm.generate_until([request("a"), request("b", temperature=0.5)])
    assert len(lm.generate_until([request("a"), request("b")])) == 2


class Killed(Exception):
    pass


def test_an_interrupted_evaluation_draws_only_what_is_missing(
    settings: EvaluationConfig, scripted_engine: Any, tmp_path: Path
) -> None:
    whole = run(settings, scripted_engine)
    answer, drawn = scripted_engine.answer, []

    def dying(prompt: list[int], seed: int) -> Any:
        if len(drawn) == 20:
            raise Killed
        drawn.append(seed)
        return answer(prompt, seed)

    small = settings.model_copy(update={"batch_size": 4})
    scripted_engine.answer = dying
    with pytest.raises(Killed):
        run(small, scripted_engine, folder=tmp_path)
    with (tmp_path / "samples.jsonl").open("a") as journal:
        journal.write('{"question": "q0')  # torn by the kill
    scripted_engine.answer = answer
    scripted_engine.asked.clear()
    again = run(small, scripted_engine, folder=tmp_path)
    assert responses(again) == responses(whole)
    assert len(scripted_engine.asked) == 36 - 20
    assert not {seed for _, seed in scripted_engine.asked} & set(drawn)


def test_another_evaluation_s_samples_are_not_taken(tmp_path: Path, scripted_engine: Any) -> None:
    sampler = AnswerSampler(scripted_engine, scripted_engine.tokenizer, 4)
    key = SampleKey("q", 0)
    for identity, there in (("one", False), ("one", True), ("other", False), ("one", False)):
        journal = Journal(tmp_path, identity)
        assert (key in journal) == there
        if not there:
            sampler.sample([Request(key, problem("q"), 5)], SamplingParams(4), journal.add)
        journal.close()


def test_a_thought_that_the_template_opens_is_part_of_the_response(scripted_engine: Any) -> None:
    """A budget that ends within it must not leave something that looks like an answer."""

    class Thinking:
        unk_token_id = None

        def apply_chat_template(self, *_: Any, **__: Any) -> dict[str, list[int]]:
            return {"input_ids": [1]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return {1: "user: 1+1\nassistant: <think>\n", 2: "it is \\boxed{2}"}[ids[-1]]

    class Engine:
        def generate(self, prompts: Any, params: Any, *, on_finished: Any, **_: Any) -> None:
            on_finished(0, Rollout([1], [2], [0.0], "length"))

    kept: dict[SampleKey, Generation] = {}
    sampler = AnswerSampler(Engine(), Thinking(), 1)  # type: ignore[arg-type]
    sampler.sample(
        [Request(SampleKey("q", 0), problem("q"), 5)], SamplingParams(4), kept.__setitem__
    )
    text = kept[SampleKey("q", 0)].text
    assert text == "<think>\nit is \\boxed{2}" and answer_text(text) is None
