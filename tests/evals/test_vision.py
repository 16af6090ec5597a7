"""Questions about images: tiny real models here, an OpenAI-compatible server by URL."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image as Pillow

from evals.benchmarks import find
from evals.benchmarks.base import Problem
from evals.benchmarks.problems import load_problems
from evals.evaluation import Evaluation, ensure_results, evaluate_checkpoint, prepare
from evals.harness.engines import Engines
from evals.harness.journal import Generation, Journal, SampleKey
from evals.harness.sampler import Keep, Request, Sampler
from evals.harness.task import run_benchmark
from evals.harness.vision import ServedVision
from reopold.config import ConfigError, EvaluationConfig
from reopold.data.images import find_image
from reopold.rollouts import SamplingParams
from reopold.stopping import never
from tests.evals.seeing import byte_llava, byte_qwen25_vl

#: Tokens of an image of the tiny Llava.
ROOM = 16


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a real architecture: answers are noise, but noise that sees."""
    return byte_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_qwen25_vl(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A red, a green and a blue one, of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    colours = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}
    for place, (name, colour) in enumerate(colours.items()):
        Pillow.new("RGB", (56 + 28 * place, 56), colour).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in colours]


def problem(*images: str, text: str | None = None, name: str = "q") -> Problem:
    text = "<image>" * len(images) + "1+1=" if text is None else text
    return Problem(name, [{"role": "user", "content": text}], {}, "2", images=list(images))


def answers(sampler: Sampler, *asked: tuple[Problem, int], **params: Any) -> list[Generation]:
    kept: dict[SampleKey, Generation] = {}
    requests = [
        Request(SampleKey(each.id, i), each, seed, tuple(map(find_image, each.images)))
        for i, (each, seed) in enumerate(asked)
    ]
    settings = SamplingParams(**{"max_new_tokens": 12, "temperature": 1.0} | params)
    sampler.sample(requests, settings, kept.__setitem__)
    return [kept[request.key] for request in requests]


def lines(folder: Path, *images: list[str], **more: Any) -> Path:
    """A file of micro_visual's, a question for each list of images."""
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "id": f"q{i}/{i % 2}",
            "prompt": [{"role": "user", "content": "<image>" * len(each) + f"{i}+1="}],
            "answer": str(i),
            "images": each,
            "version": f"v{i % 2}",
        }
        | more
        for i, each in enumerate(images)
    ]
    file = folder / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def settings(file: Path, **fields: Any) -> EvaluationConfig:
    given = {"benchmark": "micro_visual", "data": str(file), "samples": 2, "max_new_tokens": 8}
    return EvaluationConfig(**given | fields)


@pytest.fixture
def sampler(llava: Path, pictures: list[str], tmp_path: Path) -> Iterator[Sampler]:
    evaluation = prepare(settings(lines(tmp_path / "any", pictures[:1])))
    with Engines() as engines:
        yield engines.sampler(llava, evaluation)


# Sampling


def test_a_sample_depends_on_its_seed_and_its_images_alone(
    sampler: Sampler, pictures: list[str]
) -> None:
    red, _, blue = pictures
    first, other, again, alike, two, swapped, none = answers(
        sampler,
        (problem(red, name="a"), 1),
        (problem(red, name="a"), 2),
        (problem(red, name="a"), 1),
        (problem(blue, name="b"), 1),
        (problem(red, blue, name="c"), 1),
        (problem(blue, red, name="d"), 1),
        (problem(name="e"), 1),
    )
    assert first.ids == again.ids != other.ids
    assert answers(sampler, (problem(red), 1))[0].ids == first.ids  # alone as in company
    assert alike.ids != first.ids and two.ids != swapped.ids and none.ids != first.ids
    lengths = [each.prompt_tokens for each in (none, first, two)]
    assert lengths[1] - lengths[0] == lengths[2] - lengths[1] == ROOM


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_greedy_is_the_model_s_own(
    request: pytest.FixtureRequest, family: str, pictures: list[str], tmp_path: Path
) -> None:
    """From the folder to the table, against `generate` on ids and pixels put together here."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from reopold.vision import load_processor

    folder: Path = request.getfixturevalue(family)
    shown = [pictures[:1], pictures[1:], pictures[2:], pictures]
    asked = settings(lines(tmp_path / "suite", *shown), samples=1, temperature=0.0)
    evaluate_checkpoint(folder, asked, tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out" / "samples.parquet").sort_values("question_id")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    whole = load_processor(str(folder))
    images = getattr(whole, "image_processor", whole)
    for place, (given, of_question) in enumerate(zip(frame.itertuples(), shown, strict=True)):
        made = dict(images(images=[Pillow.open(path) for path in of_question], return_tensors="pt"))
        text = "<image>" * ROOM * len(of_question)
        if family == "qwen":
            rooms = (made["image_grid_thw"].prod(-1) // 4).tolist()
            text = "".join(f"<vision_start>{'<image>' * n}<vision_end>" for n in rooms)
        ids = tokenizer.encode(f"<|user|>{text}{place}+1=<|assistant|>", return_tensors="pt")
        if family == "qwen":
            made["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), **made, do_sample=False, max_new_tokens=8
        )
        assert given.prompt_tokens == ids.shape[1]
        wanted = output[0, ids.shape[1] :].tolist()
        eye = model.config.image_token_id  # fed back it asks `generate` for a picture, here not
        length = wanted.index(eye) + 1 if eye in wanted else len(wanted)
        assert given.response_ids.tolist()[:length] == wanted[:length] and length > 2


def test_scores_do_not_depend_on_the_batch(
    llava: Path, pictures: list[str], tmp_path: Path
) -> None:
    file = lines(tmp_path / "suite", pictures[:1], pictures[1:2], pictures[:2], pictures)
    frames = []
    for size in (512, 3):
        evaluate_checkpoint(llava, settings(file, batch_size=size), tmp_path / str(size))
        frame = pd.read_parquet(tmp_path / str(size) / "samples.parquet")
        frames.append(frame.drop(columns="seconds"))
    pd.testing.assert_frame_equal(*frames)
    assert frames[0]["response"].nunique() == 8
    assert frames[0]["images"].map(len).tolist() == [1, 1, 1, 1, 2, 2, 3, 3]


def test_a_thought_of_forced_length_sees_the_images(
    llava: Path, pictures: list[str], tmp_path: Path
) -> None:
    file = lines(tmp_path / "suite", pictures[:1], pictures[1:2])
    plain = prepare(settings(file))
    forced = prepare(settings(file, thinking_tokens=6, max_new_tokens=4))
    asked = [(problem(path, name=path), 5) for path in pictures[:2]]
    with Engines() as engines:
        whole = answers(engines.sampler(llava, plain), *asked, max_new_tokens=6)
        thought = answers(engines.sampler(llava, forced), *asked, max_new_tokens=4)
    for one, other in zip(whole, thought, strict=True):
        assert one.ids[:5] == other.ids[:5]  # the thought is drawn as plain samples are
        assert one.prompt_tokens == other.prompt_tokens > ROOM
    assert thought[0].ids != thought[1].ids


# The way of the images


class Told:
    """A sampler that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def sample(self, requests: Any, params: SamplingParams, keep: Keep) -> None:
        self.requests += requests
        for request in requests:
            keep(request.key, Generation("#1", [], "stop", 1, 1, 0.0))


def test_lm_eval_hands_every_request_its_images_in_order(
    pictures: list[str], tmp_path: Path
) -> None:
    shown = [pictures[:1], [*pictures[::-1], *pictures], pictures[1:]]
    evaluation = prepare(settings(lines(tmp_path, *shown)))
    told = Told()
    run = (evaluation.benchmark, evaluation.problems.problems, evaluation.settings, told)
    run_benchmark(*run, Journal(None, ""))
    assert [[image.path for image in request.images] for request in told.requests] == [
        paths for paths in shown for _ in range(2)
    ]
    for request in told.requests:
        assert request.images == tuple(find_image(path) for path in request.problem.images)


@pytest.mark.parametrize(
    "lost",
    [lambda doc: doc["images"][::-1], lambda doc: [], lambda doc: doc["images"] * 2],
)
def test_images_lost_on_the_way_are_an_error(
    lost: Callable[[Any], list[str]],
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from evals.harness import task

    build = task.build_task

    def losing(*arguments: Any) -> Any:
        built = build(*arguments)
        built.config.doc_to_image = lost
        return built

    monkeypatch.setattr(task, "build_task", losing)
    evaluation = prepare(settings(lines(tmp_path, pictures)))
    run = (evaluation.benchmark, evaluation.problems.problems, evaluation.settings, Told())
    with pytest.raises(ValueError, match="lm-eval shows"):
        run_benchmark(*run, Journal(None, ""))


def test_an_image_is_read_once_however_many_questions_show_it(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("evals.benchmarks.problems.find_image", read.append)
    prepare(settings(lines(tmp_path, *[pictures] * 9)))
    assert sorted(read) == sorted(pictures)


def test_results_are_made_anew_where_images_are_processed_otherwise(
    llava: Path, pictures: list[str], tmp_path: Path
) -> None:
    checkpoint, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(llava, checkpoint)
    evaluation = prepare(settings(lines(tmp_path / "suite", pictures), samples=1))
    assert [ensure_results(checkpoint, evaluation, output)[1] for _ in range(2)] == [True, False]
    config = checkpoint / "processor_config.json"
    changed = json.loads(config.read_text())
    changed["image_processor"]["image_mean"] = [0.9, 0.1, 0.5]
    config.write_text(json.dumps(changed))
    assert ensure_results(checkpoint, evaluation, output)[1]


# Bad input


def test_bad_images_are_refused_before_anything_is_loaded(
    pictures: list[str], tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(Path(pictures[0]).read_bytes()[:60])
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Pillow.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    for name, reason in (
        ("torn.png", "cannot be read"),
        ("moving.gif", "animated"),
        ("huge.png", "pixels"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}.*{reason}"):
            prepare(settings(lines(tmp_path, pictures[:1], [str(tmp_path / name)])))
    with pytest.raises(ConfigError, match=r"1 images of .* are not there \(.*absent"):
        prepare(settings(lines(tmp_path, [str(tmp_path / "absent.png")])))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1+1=", "0 image placeholders"), ("<image><image>1", "2 image placeholders")],
)
def test_a_prompt_has_a_placeholder_an_image(
    sampler: Sampler, pictures: list[str], text: str, reason: str
) -> None:
    served = ServedVision(["http://127.0.0.1:9"], never, "sampling")
    for each in (sampler, served):
        with pytest.raises(ConfigError, match=f"odd.*{reason}"):
            answers(each, (problem(pictures[0], text=text, name="odd"), 1))


def test_what_does_not_fit_is_refused_before_sampling(
    sampler: Sampler, pictures: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"many.*300 images takes"):
        answers(sampler, (problem(pictures[0]), 1), (problem(*pictures * 100, name="many"), 1))


def test_a_model_without_eyes_is_refused(
    checkpoint: Path, pictures: list[str], tmp_path: Path
) -> None:
    evaluation = prepare(settings(lines(tmp_path, pictures)))
    with Engines() as engines, pytest.raises(ConfigError, match="cannot answer questions about"):
        engines.sampler(checkpoint, evaluation)


# The benchmarks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mathvision_mini", "wemath", "dynamath", "logicvista"])
def test_published_questions_are_sampled_and_graded(
    benchmarks_dir: Path, llava: Path, qwen: Path, tmp_path: Path, name: str
) -> None:
    evaluation = there(benchmarks_dir, name)
    for folder in (llava, qwen):
        with Engines() as engines:
            sampler = engines.sampler(folder, evaluation)
            questions = run_benchmark(
                find(name),
                evaluation.problems.problems,
                evaluation.settings,
                sampler,
                Journal(None, ""),
            )
        assert len(questions) == 3
        for question in questions:
            (sample,) = question.samples
            assert sample.generation.tokens and sample.verdict.status != "sandbox_failure"


def there(folder: Path, name: str) -> Evaluation:
    """Three questions whose images lie in the shared folder, which has not all of them."""
    loaded = load_problems(find(name), folder)
    kept = [p for p in loaded.problems if p.images and all(Path(i).is_file() for i in p.images)]
    problems = replace(loaded, problems=kept[:3])
    wanted = EvaluationConfig(
        benchmark=name, data=str(folder), samples=1, temperature=0.0, max_new_tokens=8
    )
    return Evaluation(wanted, find(name), problems)


def test_several_images_stand_where_the_text_and_the_options_mark_them(
    qwen: Path, pictures: list[str], tmp_path: Path
) -> None:
    """MMMU marks images by number, in questions and in options, in any order, and twice."""
    row = {
        "id": "validation_Art_1",
        "question": "Which of <image 2> and <image 1> is it? <image 2>",
        "options": "['<image 3>', 'none']",
        "question_type": "multiple-choice",
        "answer": "A",
        **{f"image_{number}": path for number, path in enumerate(pictures, start=1)},
    }
    benchmark = find("mmmu")
    asked = Problem("q", benchmark.messages(row), row, "A", images=benchmark.images(row))
    red, green, blue = pictures
    assert asked.images == [green, red, green, blue]
    evaluation = prepare(settings(lines(tmp_path, pictures)))
    with Engines() as engines:
        sampler = engines.sampler(qwen, evaluation)
        (found,) = answers(sampler, (asked, 1))
        (other,) = answers(
            sampler,
            (
                problem(
                    red,
                    text=asked.messages[0]["content"].replace("<image>", "").strip() + "<image>",
                ),
                1,
            ),
        )
    # 4 + 3 + 4 + ... merged patches: 56 x 56 makes 4, each 28 more in width 2 more.
    assert found.prompt_tokens - other.prompt_tokens == (6 + 4 + 6 + 8) + 3 * 2 - 4


# A server


class Server(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "vlm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        message: dict[str, Any] = {"content": f"#{body['seed']}"}
        if body["seed"] == 9:
            message = {"content": None, "reasoning_content": "hm"}
        choice = {"message": message, "finish_reason": "length" if body["seed"] == 9 else "stop"}
        self._answer({"choices": [choice], "usage": {"completion_tokens": 3, "prompt_tokens": 7}})

    def _answer(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_server_is_sent_the_images_and_every_seed(server: str, pictures: list[str]) -> None:
    served = ServedVision([server], never, "sampling")
    shown = problem(*pictures[:2], text="a <image> b<image>c")
    asked = [(shown, seed) for seed in (5, 6, 9)]
    found = answers(served, *asked, top_p=0.9)
    assert [each.text for each in found] == ["#5", "#6", "<think>hm"]
    assert [each.finish_reason for each in found] == ["stop", "stop", "length"]
    assert sorted(body["seed"] for body in Server.asked) == [5, 6, 9]
    for body in Server.asked:
        (message,) = body["messages"]
        texts = [part["text"] for part in message["content"] if part["type"] == "text"]
        assert message["role"] == "user" and texts == ["a ", " b", "c"]
        for part, path in zip(message["content"][1::2], pictures, strict=False):
            kind, data = part["image_url"]["url"].split(",")
            assert kind == "data:image/png;base64"
            sent = Pillow.open(io.BytesIO(base64.b64decode(data)))
            assert list(sent.getdata()) == list(Pillow.open(path).getdata())
        assert (body["top_p"], body["max_tokens"], body["model"]) == (0.9, 12, "vlm")
