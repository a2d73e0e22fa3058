"""A run's configuration from YAML, with every problem named by its place."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.methods.registry import Registry

__all__ = ["load_config", "parse_config"]


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    A section `deployment` says how Prefect runs it (`deployments/register.py`), and nothing about the run: it is skipped.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, or a value is out of bounds.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"No configuration at {file}: give the path of a YAML file such as deployments/datasets/demo.yaml."
        )
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {type(data).__name__}"
        raise ConfigError(f"{file} {found}, expected a mapping of configuration sections.")
    data.pop("deployment", None)
    for override in overrides or []:
        _apply(data, override)
    return parse_config(data, origin=str(file))


def parse_config(data: dict[str, Any], origin: str = "the configuration") -> RunConfig:
    """Validate a mapping; every problem is named with its place, in one message."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'configuration'}: {_problem(item, data)}{_found(item)}"
            for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{origin}: {problems}") from None


def _problem(item: Any, data: dict[str, Any]) -> str:
    """What is wrong, in words that do not need pydantic to be known."""
    if item["type"] == "extra_forbidden":
        near = get_close_matches(str(item["loc"][-1]), _keys_beside(item["loc"], data), n=1)
        return f"this key is unknown{f', did you mean {near[0]}?' if near else ''}"
    if item["type"] == "missing":
        return "this key is missing"
    return str(item["msg"]).removeprefix("Value error, ")


def _keys_beside(place: Sequence[int | str], data: dict[str, Any]) -> list[str]:
    """The keys that the section of this key may have; none where it is one of several kinds."""
    section: type[BaseModel] = RunConfig
    given: Any = data
    for name in place[:-1]:
        given = given.get(name) if isinstance(given, dict) else None
        field = section.model_fields.get(str(name))
        registry = next((each for each in field.metadata if isinstance(each, Registry)), None) if field else None
        inner = registry.meant_by(given) if registry else _section_of(field.annotation if field else None)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or may hold; None where it is one of several kinds."""
    options = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    sections = [each for each in options if issubclass(each, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _found(item: Any) -> str:
    """The value that was found, where it is short enough to help."""
    if item["type"] in ("missing", "value_error", "extra_forbidden"):
        return ""
    text = repr(item["input"])
    return f" (found {text})" if len(text) <= 60 else ""


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in nested mappings."""
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {override!r}: expected section.field=value, such as privacy.epsilon=1")
    *parents, last = name.split(".")
    target = data
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {parent} is no section")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is not valid YAML") from error
