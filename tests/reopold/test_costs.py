"""What a run costs, counted by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from reopold.config import ModelConfig, ObjectiveConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.costs import Costs, Meter, Scorer
from reopold.rollouts import Rollout
from reopold.run_dir import RunDir
from reopold.sampling import Drawn
from reopold.trainer import Trainer

#: Two prompts of 3 and 5 ids, two rollouts each, of 4, 6, 1 and 2 tokens.
ROLLOUTS = [
    Rollout([1] * prompt, [2] * response, [0.0] * response, "stop")
    for prompt, response in ((3, 4), (3, 6), (5, 1), (5, 2))
]
#: Positions that a model reads of them: 7 + 9 + 6 + 7.
READ = 29
DRAWN = Drawn(rollouts=6, prompt_tokens=12, tokens=20)


class Twice:
    """A teacher that sees pictures in a finer grid."""

    def expand(self, prompt_ids: list[int], images: object) -> list[int]:
        return prompt_ids * 2


def metered(method: str, teachers: dict[str, Scorer], **sections: object) -> Costs:
    config = RunConfig.model_validate(
        {
            "name": "r",
            "method": method,
            "model": ModelConfig(student="./s", teacher="./t" if teachers else ""),
            "data": {"train": "./d"},
            **sections,
        }
    )
    meter = Meter(config, Scorer(10), teachers)
    meter.count(ROLLOUTS, DRAWN)
    return meter.total


def test_distillation_reads_with_both_models() -> None:
    total = metered("opd", {"": Scorer(1000, Twice())})
    assert (total.samples, total.rollouts) == (4, 6)
    assert (total.prompt_tokens, total.tokens) == (12, 20)
    assert total.student_tokens == total.update_tokens == READ
    assert total.teacher_tokens == READ + 16  # every prompt once more
    own = 2 * 10 * (12 + 20) + 2 * 10 * READ + 6 * 10 * READ
    assert total.flops == own + 2 * 1000 * (READ + 16)


def test_layers_that_are_computed_again_cost_a_forward_pass_more() -> None:
    again = metered("grpo", {}, train=TrainConfig(recompute_layers=True))
    assert again.flops - metered("grpo", {}).flops == 2 * 10 * READ


def test_grpo_has_no_teacher_and_kept_activations_save_a_forward_pass() -> None:
    total = metered("grpo", {}, train=TrainConfig(keep_activations=True))
    assert total.teacher_tokens == 0
    assert total.flops == 2 * 10 * 32 + 2 * 10 * READ + 4 * 10 * READ


def test_supervised_training_samples_nothing() -> None:
    total = metered("sft", {}, sampling=SamplingConfig(rollouts_per_prompt=1))
    assert (total.samples, total.rollouts, total.tokens, total.student_tokens) == (4, 0, 0, 0)
    assert total.flops == 6 * 10 * READ


def test_rewards_under_the_current_policy_score_once_more_an_update() -> None:
    total = metered(
        "opd",
        {"": Scorer(1)},
        objective=ObjectiveConfig(reward_at="current"),
        train=TrainConfig(updates_per_step=2),
    )
    assert total.student_tokens == 3 * READ


def test_a_teacher_of_unknown_size_leaves_the_flops_unknown_and_nothing_else() -> None:
    total = metered("opd", {"": Scorer(math.nan)})
    assert math.isnan(total.flops) and total.teacher_tokens == READ


def test_a_run_logs_its_costs_and_goes_on_with_them(
    recipe: Callable[..., RunConfig], run_dir: Callable[..., RunDir]
) -> None:
    config = recipe("opd")
    whole, parted = run_dir(config, "whole"), run_dir(config, "parted")
    for run, ends in ((whole, [6]), (parted, [2, 6])):
        for until in ends:
            points = run.complete_checkpoints()
            point = run.checkpoint(points[-1]) if points else None
            trainer = Trainer(run, config, "cpu", point=point)
            trainer.train(until)
            trainer.close()
    lines = whole.metrics()
    names = ["samples", "tokens", *(name for name in lines[0] if name.startswith("cost/"))]
    for name in names:
        values = [line[name] for line in lines]
        assert all(a < b for a, b in itertools.pairwise(values)), name
        assert values == [line[name] for line in parted.metrics()], name
    assert lines[-1]["cost/teacher_tokens"] == lines[-1]["cost/student_tokens"]
    assert lines[-1]["cost/rollouts"] == lines[-1]["samples"] == 6 * config.samples_per_step
