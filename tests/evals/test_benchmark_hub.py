"""The hub's path, on data sets and caches that lie on this machine: no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from evals.benchmarks import find
from evals.benchmarks.base import Benchmark, Source
from evals.benchmarks.problems import load_problems
from reopold.config import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.delenv("REOPOLD_BENCHMARKS", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Picture.new("L", (2, 2), shade).save(buffer, "PNG")
    return buffer.getvalue()


def _parquet(path: Path, rows: list[dict[str, Any]], images: tuple[str, ...] = ()) -> None:
    from datasets import Dataset, Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rows_with_images = [
        row | {name: row[name] and {"bytes": row[name], "path": None} for name in images}
        for row in rows
    ]
    data = Dataset.from_list(rows_with_images)
    for name in images:
        data = data.cast_column(name, Image())
    data.to_parquet(str(path))


def _on(hub: Path, name: str, **changes: Any) -> Benchmark:
    """A benchmark whose hub id is a local folder, which `datasets` loads alike."""
    benchmark = find(name)
    source = replace(benchmark.source, hub=str(hub), revision=None, files=())
    return replace(benchmark, source=source, **changes)


def test_rows_and_pictures_come_from_the_hub_s_data_set(tmp_path: Path) -> None:
    rows = [
        {
            "pid": str(number),
            "question": "How many?",
            "query": f"Hint: ...\nQuestion {number}",
            "answer": "1",
            "image": f"images/{number}.jpg",
            "decoded_image": _png(number),
            "metadata": {"grade": "college", "skills": ["a"]},
        }
        for number in (1, 2)
    ]
    _parquet(tmp_path / "hub/data/testmini-00000-of-00001.parquet", rows, ("decoded_image",))
    problems = load_problems(_on(tmp_path / "hub", "mathvista", items=(2,)))
    first = problems.problems[0]
    assert (first.id, first.gold, problems.revision) == ("1", "1", None)
    assert first.messages[0]["content"] == "<image>\nHint: ...\nQuestion 1"
    assert first.row["metadata"] == {"grade": "college", "skills": ["a"]}
    (image,) = first.images
    folder = Path(os.environ["REOPOLD_HOME"]).absolute() / "benchmark-images"
    assert Path(image).parent == folder and Path(image).read_bytes() == _png(1)
    assert Path(image).stem == hashlib.sha256(_png(1)).hexdigest()
    problems.check_samplable()


def test_the_digest_tells_the_pictures_but_not_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"ID": "1", "key": "2steps_1", "question": "?", "option": "A. 1", "answer": "A"}
    digests = []
    for number, shade in enumerate((7, 7, 8)):
        hub = tmp_path / f"hub{number}"
        _parquet(
            hub / "data/testmini-00000-of-00001.parquet",
            [row | {"image_path": _png(shade)}],
            ("image_path",),
        )
        monkeypatch.setenv("REOPOLD_HOME", str(tmp_path / f"home{number}"))
        problems = load_problems(_on(hub, "wemath", items=(1,)))
        assert Path(problems.problems[0].images[0]).is_relative_to(tmp_path / f"home{number}")
        digests.append(problems.digest)
    assert digests[0] == digests[1] != digests[2]


def test_several_configurations_and_splits_are_joined(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    header = ["---", "configs:"]
    for subject in ("Art", "Music"):
        row = {
            "id": f"validation_{subject}_1",
            "question": "Which of <image 2> and <image 1>?",
            "options": "['<image 1>', 'neither']",
            "answer": "A",
            "question_type": "multiple-choice",
            "image_1": _png(1),
            "image_2": _png(2),
            "image_3": None,
        }
        _parquet(hub / f"{subject}/validation.parquet", [row], ("image_1", "image_2", "image_3"))
        header += [f"- config_name: {subject}", "  data_files:", "  - split: validation"]
        header += [f"    path: {subject}/validation.parquet"]
    (hub / "README.md").write_text("\n".join([*header, "---", ""]))
    benchmark = _on(hub, "mmmu", items=(2,))
    benchmark = replace(benchmark, source=replace(benchmark.source, config=("Art", "Music")))
    problems = load_problems(benchmark).problems
    assert [problem.id for problem in problems] == ["validation_Art_1", "validation_Music_1"]
    assert [problem.row["source"] for problem in problems] == ["Art", "Music"]
    text = problems[0].messages[0]["content"]
    assert text.startswith("Which of <image> and <image>?\n\n(A) <image>\n(B) neither\n\nAnswer")
    shades = [Picture.open(image).getpixel((0, 0)) for image in problems[0].images]
    assert shades == [2, 1, 1]


def test_ten_variants_of_a_seed_are_ten_problems_of_one_cluster(tmp_path: Path) -> None:
    splits = tuple(f"sample_variant{number}" for number in range(1, 11))
    for split in splits:
        rows = [
            {"id": seed, "question": "?", "ground_truth": "3", "answer_type": "float"}
            for seed in (1, 2)
        ]
        _parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", rows)
    problems = load_problems(_on(tmp_path / "hub", "dynamath", items=(20,))).problems
    assert {problem.id for problem in problems} == {
        f"{seed}-{number}" for seed in (1, 2) for number in range(1, 11)
    }
    assert [problem.cluster for problem in problems] == ["1", "2"] * 10
    assert problems[0].gold == "3"


def _in_hub_cache(tmp_path: Path, hub: str, name: str, text: str) -> None:
    """As the hub's client leaves a file that it has fetched."""
    folder = tmp_path / "hub-cache" / f"datasets--{hub.replace('/', '--')}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / name).write_text(text)


def test_a_file_of_a_pinned_commit_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": f"abc{number}",
            "question_content": "Print 1.",
            "starter_code": "",
            "contest_date": f"2025-0{number}-04T00:00:00",
            "public_test_cases": "[]",
        }
        for number in (1, 4)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    _in_hub_cache(tmp_path, "someone/lcb", "test6.jsonl", text)
    source = Source(hub="someone/lcb", hub_files=("test6.jsonl",), revision=COMMIT)
    benchmark = replace(find("livecodebench"), source=source, items=(2,))
    problems = load_problems(benchmark)
    assert [problem.id for problem in problems.problems] == ["abc1", "abc4"]
    assert problems.revision == COMMIT
    assert problems.origin == "someone/lcb (2 problems, 2025-01-04 to 2025-04-04)"


def test_a_fault_in_a_hub_s_file_names_the_hub(tmp_path: Path) -> None:
    _in_hub_cache(tmp_path, "someone/lcb", "test6.jsonl", "{}\n")
    source = Source(hub="someone/lcb", hub_files=("test6.jsonl",), revision=COMMIT)
    benchmark = replace(find("livecodebench"), source=source, items=(1,))
    with pytest.raises(ConfigError, match=r"someone/lcb/test6\.jsonl, line 1: a record has no"):
        load_problems(benchmark)


@pytest.mark.parametrize("name", ["math500", "livecodebench", "mathvision", "mmmu"])
def test_without_network_and_cache_it_says_where_files_may_be_put(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_problems(find(name))
    source = find(name).source
    for part in (source.hub, source.files[0], "REOPOLD_BENCHMARKS", "--data"):
        assert part in str(caught.value)
