"""Prompt sets that others have published, as the JSONL that recipes read.

Each is read from its parquet files, from the hub or from a folder, at a pinned version where one
could be looked up; the prompts carry the same instruction as the benchmarks that they train for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reopold.config import ConfigError, Family, Reward
from reopold.data.images import PLACEHOLDER
from reopold.run_dir import write_atomic

Row = dict[str, Any]
#: What is appended to a question of maths, here and in the benchmarks.
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
#: Rows that are read from a file at once.
BATCH = 1000


@dataclass(frozen=True)
class PromptSource:
    """A published set of prompts."""

    name: str
    title: str
    family: Family
    licence: str
    convert: Callable[[Row], Row | None]
    """A row as a line without `id`; None leaves it out."""
    reward: Reward
    """The outcome reward that its answers are made for."""
    columns: tuple[str, ...]
    """Those that are read."""
    hub: str = ""
    """Hub id; empty: `url`."""
    files: str = "data/train-*.parquet"
    """Of the hub's repository, or within the folder that is given."""
    revision: str | None = None
    """Commit; None where nobody could look it up: then it is recorded when the set is fetched."""
    url: str = ""
    """Where its one file is, if the hub has it not."""


@dataclass(frozen=True)
class Prepared:
    """What was written, and from what."""

    name: str
    path: str
    prompts: int
    left_out: int
    """Rows without a question or an answer, and repetitions."""
    revision: str
    licence: str
    sha256: str


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def deepmath(row: Row) -> Row | None:
    """zwhe99/DeepMath-103K: question, final_answer."""
    question, answer = str(row["question"]).strip(), str(row["final_answer"]).strip()
    if not question or not answer:
        return None
    return {"prompt": _user(f"{question}\n\n{BOXED}"), "answer": answer}


def dapo_math(row: Row) -> Row | None:
    """BytedTsinghua-SIA/DAPO-Math-17k: a chat that asks for a last line "Answer: ..."."""
    answer = str(row["reward_model"]["ground_truth"]).strip()
    prompt = [{"role": m["role"], "content": m["content"]} for m in row["prompt"]]
    return {"prompt": prompt, "answer": answer} if answer else None


def geometry3k(row: Row) -> Row | None:
    """hiyouga/geometry3k: problem with <image>, images as bytes, answer."""
    problem, answer = str(row["problem"]).strip(), str(row["answer"]).strip()
    images = [image["bytes"] for image in row["images"]]
    if not answer or not images or not all(images):
        return None
    if not problem.count(PLACEHOLDER):
        problem = PLACEHOLDER * len(images) + problem
    if problem.count(PLACEHOLDER) != len(images):
        return None
    return {"prompt": _user(f"{problem}\n\n{BOXED}"), "answer": answer, "images": images}


def toolrl(row: Row) -> Row | None:
    """ToolRL's rlla_4k: a system prompt with the tools and the form, a dialogue so far; the gold is
    the next turn. Its calls are the answer: an empty list where it only responds."""
    prompt = [{"role": m["role"], "content": m["content"]} for m in row["prompt"]]
    block = re.search(
        r"<tool_call>\n(.*?)\n</tool_call>", row["reward_model"]["ground_truth"], re.S
    )
    calls: list[Row] = []
    for line in block[1].splitlines() if block else []:
        try:
            call = json.loads(line)
            calls.append({"name": call["name"], "arguments": dict(call["parameters"])})
        except (ValueError, KeyError, TypeError):
            return None
    return {"prompt": prompt, "answer": json.dumps(calls, sort_keys=True)}


SOURCES = {
    source.name: source
    for source in (
        PromptSource(
            name="deepmath",
            title="DeepMath-103K",
            family="maths",
            licence="MIT",
            convert=deepmath,
            reward="maths",
            columns=("question", "final_answer"),
            hub="zwhe99/DeepMath-103K",
            revision="0406dc9d807ab2bfe11423c84468a234c8be18c1",
        ),
        PromptSource(
            name="dapo_math",
            title="DAPO-Math-17k",
            family="maths",
            licence="Apache-2.0",
            convert=dapo_math,
            reward="maths",
            columns=("prompt", "reward_model"),
            hub="BytedTsinghua-SIA/DAPO-Math-17k",
            files="data/*.parquet",
        ),
        PromptSource(
            name="geometry3k",
            title="Geometry3K",
            family="visual",
            licence="MIT",
            convert=geometry3k,
            reward="maths",
            columns=("images", "problem", "answer"),
            hub="hiyouga/geometry3k",
        ),
        PromptSource(
            name="toolrl",
            title="ToolRL (rlla_4k)",
            family="tools",
            licence="Apache-2.0",
            convert=toolrl,
            reward="calls",
            columns=("prompt", "reward_model"),
            files="train.parquet",
            revision="8cee13ec0ca72f0461da372a93a6fd8140dbb840",
            url="https://github.com/qiancheng0/ToolRL/raw/{revision}/dataset/rlla_4k/train.parquet",
        ),
    )
}


def find_source(name: str) -> PromptSource:
    """Raises ConfigError: nobody knows a set of that name."""
    if name not in SOURCES:
        raise ConfigError(f"no prompt set '{name}'; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def prepare_prompts(
    name: str,
    folder: Path,
    given: Path | None = None,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write `train.jsonl`, the images beside it, and `source.json`, which says what they are from.

    Nothing but whole files is ever seen under these names; run again, it writes the same bytes.

    Args:
        given: a parquet file of the set, or a folder of them, instead of the hub.
        on_row: told how many rows are read, of how many.

    Raises:
        ConfigError: no such set; the files are not there, not parquet, or lack a column; or the
            hub cannot be reached.
    """
    source = find_source(name)
    files, revision = (_local(source, given), "") if given else _fetched(source)
    lines: dict[str, Row] = {}
    read = 0
    total = sum(_parquet(file, source).metadata.num_rows for file in files)
    for row in _read(files, source):
        read += 1
        on_row(read, total)
        line = source.convert(row)
        if line is not None:
            images = [_saved(image, folder) for image in line.pop("images", [])]
            line |= {"images": images} if images else {}
            lines.setdefault(_digest(line), line)
    if not lines:
        raise ConfigError(f"{files[0]} holds no prompts of {source.title}")
    text = "".join(
        json.dumps({"id": f"{name}-{digest[:12]}", "source": name, **line}, sort_keys=True) + "\n"
        for digest, line in lines.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "train.jsonl", text)
    prepared = Prepared(
        name=name,
        path=str(folder / "train.jsonl"),
        prompts=len(lines),
        left_out=read - len(lines),
        revision=revision,
        licence=source.licence,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    write_atomic(folder / "source.json", json.dumps(asdict(prepared), indent=2, sort_keys=True))
    return prepared


def _digest(line: Row) -> str:
    """Names a prompt by its text and images: repetitions have the same."""
    asked = json.dumps([line["prompt"], line.get("images")], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _saved(image: bytes, folder: Path) -> str:
    """Path of an image within the folder, named by its content."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpg"
    path = Path("images") / f"{hashlib.sha256(image).hexdigest()}.{kind}"
    if not (folder / path).exists():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / path, image)
    return str(path)


def _local(source: PromptSource, given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    found = sorted(given.glob(source.files)) or sorted(given.glob(Path(source.files).name))
    if not found:
        raise ConfigError(f"no {source.files} in {given}: name a parquet file or its folder")
    return found


def _fetched(source: PromptSource) -> tuple[list[Path], str]:
    """The set's files, in the cache of the hub's library, and their commit."""
    try:
        return _downloaded(source) if source.hub else _by_url(source)
    except ConfigError:
        raise
    except Exception as error:  # the libraries' errors have no base of their own
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        where = source.hub or source.url.format(revision=source.revision)
        raise ConfigError(
            f"{where} cannot be read ({reason}); fetch its files elsewhere and name them with "
            "--from"
        ) from error


def _downloaded(source: PromptSource) -> tuple[list[Path], str]:
    from huggingface_hub import HfApi, snapshot_download

    revision = source.revision or str(HfApi().dataset_info(source.hub).sha)
    folder = snapshot_download(
        source.hub, repo_type="dataset", revision=revision, allow_patterns=source.files
    )
    return _local(source, Path(folder)), revision


def _by_url(source: PromptSource) -> tuple[list[Path], str]:
    import httpx
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE) / "reopold" / f"{source.name}-{source.revision}.parquet"
    if not file.exists():
        url = source.url.format(revision=source.revision)
        answer = httpx.get(url, follow_redirects=True, timeout=60)
        answer.raise_for_status()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, answer.content)
    return [file], str(source.revision)


def _read(files: Sequence[Path], source: PromptSource) -> Iterator[Row]:
    for file in files:
        for batch in _parquet(file, source).iter_batches(BATCH, columns=list(source.columns)):
            yield from batch.to_pylist()


def _parquet(file: Path, source: PromptSource) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        opened = ParquetFile(file)
    except ArrowInvalid as error:
        raise ConfigError(f"{file} is no parquet file") from error
    there = opened.schema_arrow.names
    if missing := [column for column in source.columns if column not in there]:
        raise ConfigError(
            f"{file} is not of {source.title}: it has no column {', '.join(missing)}, but "
            f"{', '.join(there)}"
        )
    return opened
