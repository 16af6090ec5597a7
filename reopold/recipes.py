"""Reading recipes, overriding their keys, and changing them on the way (rollbacks).

Importable without torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reopold.config import ConfigError, RunConfig, Strict, Training

Config = TypeVar("Config", bound=Strict)


def load_recipe(path: Path, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe as `kind`, with `key.sub=value` overrides.

    The key `base` names a recipe, relative to the file, whose settings hold where the file has none
    of its own. The base of a study may be a run's recipe: its method and seed are not the study's.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (the nearest valid one is
            named), or a value has the wrong type or range.
    """
    raw = _read_recipe(path, kind)
    config = overridden(raw, kind, overrides, str(path))
    if isinstance(config, Training) and config.health.rolls_back:
        changed(config, config.health.rollback_set)
    return config


def is_study(path: Path) -> bool:
    """Whether a recipe, or one it is based on, lists methods.

    Raises:
        ConfigError: it cannot be read.
    """
    return "methods" in _read_recipe(path, RunConfig)


#: Of a run's recipe that is the base of a study: each run has its own.
_OF_RUNS = ("name", "method", "seed")


def _read_recipe(path: Path, kind: type[Config], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe and of those it is based on."""
    if path.resolve() in above:
        raise ConfigError(f"{path} is based on itself, by way of {above[-1].name}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        whose = f" (the base of {above[-1]})" if above else ""
        raise ConfigError(f"no recipe at {path}{whose}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, not {type(raw).__name__}")
    base = raw.pop("base", None)
    if base is None:
        return raw
    found = _read_recipe(path.parent / str(base), kind, (*above, path.resolve()))
    if kind is not RunConfig:
        found = {key: value for key, value in found.items() if key not in _OF_RUNS}
    return _merged(found, raw)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `base`, section by section."""
    both = dict(base)
    for key, value in own.items():
        there = both.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            value = _merged(there, value)
        both[key] = value
    return both


def overridden(
    raw: dict[str, Any], kind: type[Config], overrides: Sequence[str], source: str
) -> Config:
    """`raw`, which is changed, with `key.sub=value` overrides as `kind`.

    Raises:
        ConfigError: as :func:`load_recipe`.
    """
    for override in overrides:
        _apply_override(raw, override)
    return parse(raw, kind, source)


def parse(raw: Mapping[str, Any], kind: type[Config], source: str) -> Config:
    """Validate `raw` as `kind`; every fault becomes a line of one :class:`ConfigError`."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, kind) for fault in error.errors()]
        raise ConfigError(f"{source}: " + "\n  ".join(lines)) from error


#: Settings that a rollback must not change, by prefix, and why.
_FIXED = {
    "name": "it names the run",
    "method": "that would be another run",
    "family": "that would be another run",
    "methods": "that would be another study",
    "variants": "that would be another study",
    "sweeps": "that would be another study",
    "seeds": "that would be another study",
    "baseline": "that would be another study",
    "seed": "it decides which prompts the steps before have seen",
    "model": "checkpoints would belong to other models",
    "micro": "checkpoints would belong to other models",
    "data": "it decides which prompts the steps before have seen",
    "teachers": "checkpoints would have learnt from other teachers",
    "sampling.prompts_per_step": "a checkpoint's step would mean other samples",
    "sampling.rollouts_per_prompt": "a checkpoint's step would mean other samples",
    "objective.resample_rounds": "a checkpoint's step would mean other samples",
    "objective.phases": "a checkpoint's step would belong to another phase",
    "objective.switch_fraction": "a checkpoint's step would belong to another phase",
    "objective.switch_step": "a checkpoint's step would belong to another phase",
    "train.steps": "a checkpoint's step would mean another share of the run",
    "train.checkpoint_every": "checkpoints would stand at other steps",
    "evaluation": "scores before and after could not be compared",
    "health": "an alarm must not silence itself",
}


def changed(config: Config, overrides: Sequence[str]) -> tuple[Config, dict[str, list[Any]]]:
    """`config` as a rollback changes it, and the old and new value by key.

    Args:
        overrides: `key.sub=value` as `--set` takes it; the value `*0.5` multiplies by 0.5.

    Raises:
        ConfigError: an override is malformed, unknown, not for a rollback to change, or changes
            nothing; or the result is no valid config.
    """
    new, made = change(config, overrides)
    idle = [key for key, (before, after) in made.items() if before == after]
    if idle:
        raise ConfigError(
            f"health.rollback_set: {', '.join(idle)} would stay as it is, and the run would meet "
            "the same alarm again; give it another value"
        )
    return new, made


def change(config: Config, overrides: Sequence[str]) -> tuple[Config, dict[str, list[Any]]]:
    """As :func:`changed`, but a value that is there already passes."""
    if not overrides:
        raise ConfigError(
            "health.rollback_set is empty: without a change the run would meet the same alarm "
            "again; name one, for example optimizer.lr=*0.5"
        )
    raw = config.model_dump(mode="json")
    for override in overrides:
        _refuse_fixed(override)
        _apply_override(raw, _multiplied(raw, override))
    new = parse(raw, type(config), "health.rollback_set")
    keys = [override.partition("=")[0] for override in overrides]
    old_raw, new_raw = config.model_dump(mode="json"), new.model_dump(mode="json")
    return new, {key: [_value_at(old_raw, key), _value_at(new_raw, key)] for key in keys}


def _refuse_fixed(override: str) -> None:
    key = override.partition("=")[0]
    for fixed, reason in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(f"health.rollback_set cannot change '{key}': {reason}")


def _multiplied(raw: Mapping[str, Any], override: str) -> str:
    """`key=*factor` as `key=product`; any other override as it is."""
    key, _, text = override.partition("=")
    old = _value_at(raw, key)
    if isinstance(old, Mapping):
        raise ConfigError(f"health.rollback_set {override!r}: name a field of '{key}', not all")
    if not text.startswith("*"):
        return override
    try:
        factor = float(text[1:])
    except ValueError as error:
        raise ConfigError(
            f"health.rollback_set {override!r}: write a factor as {key}=*0.5"
        ) from error
    if old is None:
        return f"{key}={factor}"  # the key is unknown: parse says so, and names the nearest
    if isinstance(old, bool) or not isinstance(old, int | float):
        raise ConfigError(f"health.rollback_set {override!r}: {old!r} is no number to multiply")
    return f"{key}={json.dumps(old * factor)}"


def _value_at(raw: Mapping[str, Any], key: str) -> Any:
    """The value at `a.b.c`, or None."""
    node: Any = raw
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write it as key=value, for example train.steps=50")
    *parents, leaf = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: '{parent}' is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error


def _explain(fault: Any, kind: type[BaseModel]) -> str:
    """One fault as `where: what is wrong (how to mend it)`."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        valid = _keys_at(kind, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{where}': {hint}"
    if fault["type"] == "missing":
        return f"'{where}' is missing"
    if fault["type"] == "value_error":
        return f"{where}: {fault['ctx']['error']}" if where else str(fault["ctx"]["error"])
    return f"'{where}': {fault['msg']} (got {fault['input']!r})"


def _keys_at(kind: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    node: Any = kind
    for part in loc:
        node = node.model_fields[part].annotation
    return list(node.model_fields)
