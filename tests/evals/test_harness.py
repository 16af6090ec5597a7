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
from evals.benchmarks.problems import Record, load_problems
from evals.harness.adapter import EngineLM, sample_seed
from evals.harness.task import Question, run_benchmark
from evals.results import METRICS
from reopold.config import EvaluationConfig


def run(
    settings: EvaluationConfig, engine: Any, records: list[Record] | None = None
) -> list[Question]:
    """Through lm-eval, with the scripted engine of conftest.py."""
    records = records or load_problems(Path(settings.data)).records
    return run_benchmark(find("micro_maths"), records, settings, engine, engine.tokenizer)


def request(doc_id: str, **wanted: Any) -> Instance:
    kwargs = {"max_gen_toks": 4, "temperature": 1.0, "until": []} | wanted
    doc = {"id": doc_id, "prompt": [], "answer": ""}
    return Instance("generate_until", doc, ("<|user|>1+1=", kwargs), 0, ("micro_maths", 0, 1))


def test_prompts_are_the_chat_template_s_ids(
    settings: EvaluationConfig, scripted_engine: Any
) -> None:
    questions = run(settings, scripted_engine)
    expected = [
        tuple(
            scripted_engine.tokenizer.apply_chat_template(
                question.record["prompt"], add_generation_prompt=True, tokenize=True
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
    lm = EngineLM(scripted_engine, adding, seed=0, batch_size=1)
    ids = lm.prompt_ids(lm.apply_chat_template(messages))
    wanted = adding.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert ids == wanted["input_ids"]


def test_every_sample_has_its_own_seed(settings: EvaluationConfig, scripted_engine: Any) -> None:
    questions = run(settings, scripted_engine)
    seeds = [seed for _, seed in scripted_engine.asked]
    assert len(seeds) == len(questions) * settings.samples == len(set(seeds))
    assert all(0 <= seed < 2**63 for seed in seeds)
    expected = [
        sample_seed(settings.seed, question.record["id"], repeat)
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
    return {q.record["id"]: [sample.response for sample in q.samples] for q in questions}


@pytest.mark.parametrize("batch_size", [1, 5, 36, 1000])
def test_samples_depend_on_neither_batch_nor_order(
    settings: EvaluationConfig, scripted_engine: Any, batch_size: int
) -> None:
    questions = run(settings, scripted_engine)
    records = load_problems(Path(settings.data)).records
    random.Random(batch_size).shuffle(records)
    changed = settings.model_copy(update={"batch_size": batch_size})
    scripted_engine.batches.clear()
    assert responses(run(changed, scripted_engine, records)) == responses(questions)
    total, batches = len(records) * settings.samples, scripted_engine.batches
    assert sum(batches) == total and max(batches) == min(batch_size, total)


def test_every_repeat_is_graded_and_kept(settings: EvaluationConfig, scripted_engine: Any) -> None:
    questions, tokenizer = run(settings, scripted_engine), scripted_engine.tokenizer
    assert [len(question.samples) for question in questions] == [settings.samples] * 12
    statuses: Counter[str] = Counter()
    for question in questions:
        for repeat, sample in enumerate(question.samples):
            seed = sample_seed(settings.seed, question.record["id"], repeat)
            rollout = scripted_engine.answer([], seed)
            ids = [i for i in rollout.response_ids if i != tokenizer.eos_token_id]
            assert sample.response == "".join(tokenizer.convert_ids_to_tokens(ids))
            assert sample.generation.finish_reason == rollout.finish_reason
            assert sample.generation.tokens == len(rollout.response_ids)
            assert (rollout.finish_reason == "length") == (sample.verdict.status == "no_answer")
            statuses[sample.verdict.status] += 1
    assert set(statuses) == {"ok", "wrong", "no_answer"}  # the case is not vacuous


def test_metrics_of_each_question(settings: EvaluationConfig, scripted_engine: Any) -> None:
    records = load_problems(Path(settings.data)).records
    for i, record in enumerate(records):
        record["answer"] = str(i % 4)  # the scripted answers are 0 to 3
    questions = run(settings.model_copy(update={"samples": 8}), scripted_engine, records)
    for question in questions:
        right = [sample.verdict.correct for sample in question.samples]
        votes = Counter(s.verdict.extracted for s in question.samples if s.verdict.extracted)
        best = max(votes.values(), default=0)
        winners = [answer for answer, count in votes.items() if count == best]
        majority = (question.record["answer"] in winners) / max(1, len(winners))
        expected = (sum(right) / len(right), float(any(right)), majority)
        assert [question.values[metric] for metric in METRICS] == pytest.approx(expected)
    values = [question.values for question in questions]
    assert len({tuple(value.values()) for value in values}) > 2


def test_only_generation_is_offered(scripted_engine: Any) -> None:
    lm = EngineLM(scripted_engine, scripted_engine.tokenizer, seed=0, batch_size=4)
    for method in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])
    with pytest.raises(ValueError, match="stop strings"):
        lm.generate_until([request("a", until=["\n"])])
    with pytest.raises(ValueError, match="not supported: top_p"):
        lm.generate_until([request("a", top_p=0.9)])
    with pytest.raises(ValueError, match="one generation setting"):
        lm.generate_until([request("a"), request("b", temperature=0.5)])
    assert len(lm.generate_until([request("a"), request("b")])) == 2
