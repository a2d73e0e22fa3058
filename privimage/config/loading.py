"""A run's configuration from YAML, with every problem named by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.methods.registry import Registry

__all__ = ["load_config", "merged", "parse_config"]


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    An override that names another method (`generator.kind=gan`) keeps of its section what that method has, too.
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
        data = _apply(data, override)
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
        meant = near[0] if near else _elsewhere(str(item["loc"][-1]), data)
        return f"this key is unknown{f', did you mean {meant}?' if meant else ''}"
    if item["type"] == "missing":
        return "this key is missing"
    return str(item["msg"]).removeprefix("Value error, ")


def _keys_beside(place: Sequence[int | str], data: dict[str, Any]) -> list[str]:
    """The keys that the section of this key may have; none where it is one of several kinds."""
    section: type[BaseModel] = RunConfig
    given: Any = data
    for name in place[:-1]:
        given = given.get(name) if isinstance(given, dict) else None
        field, registry = section.model_fields.get(str(name)), _registry_of(str(name), section)
        inner = registry.meant_by(given) if registry else _section_of(field.annotation if field else None)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _elsewhere(name: str, data: dict[str, Any]) -> str | None:
    """A setting of this name in the sections of the chosen methods."""
    for section in ("generator", "selection"):
        registry = _registry_of(section, RunConfig)
        method = registry.meant_by(data.get(section, {})) if registry else None
        if method is not None and name in method.model_fields:
            return f"{section}.{name}"
    return None


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


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, section by section.

    Where these name another method (`generator.kind`, `selection.strategy`), settings that it does not have are dropped.
    """
    result = dict(base)
    for name, value in changes.items():
        before = result.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            registry = _registry_of(name, RunConfig)
            before = _of_method(registry, before, value) if registry else before
            result[name] = merged(before, value)
        else:
            result[name] = value
    return result


def _apply(data: dict[str, Any], override: str) -> dict[str, Any]:
    """With one `a.b.c=value` put over nested mappings."""
    name, separator, value = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {override!r}: expected section.field=value, such as privacy.epsilon=1")
    *parents, last = name.split(".")
    inside: Any = data
    for parent in parents:
        inside = inside.get(parent) or {}
        if not isinstance(inside, dict):
            raise ConfigError(f"--set {override!r}: {parent} is no section")
    try:
        given = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is not valid YAML") from error
    if isinstance(given, dict) and last in inside:
        # A whole section stands for itself: nothing of the one before is left.
        data = merged(data, _nested([*parents, last], None))
    return merged(data, _nested([*parents, last], given))


def _nested(names: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _of_method(registry: Registry[Any], section: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section without those settings of its method that the method of the changed section does not have."""
    now, then = registry.meant_by(dict(section)), registry.meant_by({**section, **changes})
    return section if now is None or then is None or now is then else _shared(section, now, then)


def _shared(section: Mapping[str, Any], now: type[BaseModel], then: type[BaseModel]) -> dict[str, Any]:
    kept = {}
    for name, value in section.items():
        if name in now.model_fields and name not in then.model_fields:
            continue
        inner = [_section_of(each.model_fields[name].annotation) for each in (now, then) if name in each.model_fields]
        if isinstance(value, Mapping) and len(inner) == 2 and inner[0] and inner[1]:
            value = _shared(value, inner[0], inner[1])
        kept[name] = value
    return kept


def _registry_of(name: str, section: type[BaseModel]) -> Registry[Any] | None:
    """The registry whose methods a section of the configuration may be of."""
    field = section.model_fields.get(name)
    return next((each for each in field.metadata if isinstance(each, Registry)), None) if field else None
