"""What all sections of the configuration have in common, in validation and in forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["Section"]


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know; its JSON schema is made for forms."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        model_title_generator=lambda model: model.__name__.removesuffix("Config"),
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Bounds stand in the descriptions too: forms check them, but show descriptions only."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for field in schema.get("properties", {}).values():
            if bounds := _bounds(field):
                field["description"] = f"{field.get('description', '').rstrip('.')} ({bounds})."
        return schema


def _bounds(field: Mapping[str, Any]) -> str:
    """The bounds of a number's schema in words, such as "1 to 64" or "above 0, at most 1"."""
    numbers = [part for part in field.get("anyOf", [field]) if part.get("type") in ("integer", "number")]
    bounds: Mapping[str, float] = numbers[0] if numbers else {}
    if "minimum" in bounds and "maximum" in bounds:
        return f"{_plain(bounds['minimum'])} to {_plain(bounds['maximum'])}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {_plain(bounds[name])}" for name, word in words.items() if name in bounds)


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
