"""Where declarations are found by name, and how a configuration names one: a tagged union that can grow.

    generator: {kind: gan, network: {...}, ...}
    selection: {strategy: random, ...}

A new method is one declaration, registered once: `GENERATORS.register(MyKind)`. Nothing else has to know of it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from privimage.config.form import Section
from privimage.errors import ConfigError
from privimage.methods.backbone import BackboneKind
from privimage.methods.backbones.classifier import Classifier
from privimage.methods.backbones.ready import EfficientNetLite0, Timm, Torchvision
from privimage.methods.generator import GeneratorKind
from privimage.methods.generators.diffusion import Diffusion
from privimage.methods.generators.gan import Gan
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.methods.selection import SelectionStrategy
from privimage.methods.selections.all import All
from privimage.methods.selections.images import Images
from privimage.methods.selections.none import NoSelection
from privimage.methods.selections.random import Random
from privimage.methods.selections.semantic import Semantic

__all__ = ["BACKBONES", "GENERATORS", "SELECTIONS", "Registry"]

T = TypeVar("T", bound=Section)


class Registry(Generic[T]):
    """Declarations by name; as an annotation of a field, the union of all that are registered.

    Args:
        tag: the key that tells them apart; each declaration has it as a field with its own name for default.
        declared: the first of them is meant where a configuration does not say which.
    """

    def __init__(self, tag: str, *declared: type[T]) -> None:
        self.tag = tag
        self._declared: dict[str, type[T]] = {}
        for each in declared:
            self.register(each)

    def register(self, declaration: type[T]) -> type[T]:
        """Make a declaration known; can be used as a decorator.

        Raises:
            ConfigError: another declaration has this name.
        """
        name = str(declaration.model_fields[self.tag].default)
        if self._declared.setdefault(name, declaration) is not declaration:
            raise ConfigError(f"There are two declarations with {self.tag} {name}: give one of them another name.")
        return declaration

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were registered."""
        return tuple(self._declared)

    def named(self, name: str) -> type[T]:
        """The declaration of that name, or ConfigError that lists the names."""
        if name not in self._declared:
            raise ConfigError(f"There is no {self.tag} {name!r}; there are {', '.join(self._declared)}.")
        return self._declared[name]

    def meant_by(self, settings: Any) -> type[T] | None:
        """The declaration that a mapping of settings names, or leaves to the default; None if there is none of that name."""
        name = settings.get(self.tag, self.names[0]) if isinstance(settings, dict) else None
        return self._declared.get(name) if isinstance(name, str) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validated, serialization=core_schema.plain_serializer_function_ser_schema(lambda each: each)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        options = [
            each.__get_pydantic_json_schema__(each.__pydantic_core_schema__, handler)
            for each in self._declared.values()
        ]
        return {"discriminator": {"propertyName": self.tag}, "oneOf": options}

    def _validated(self, value: Any) -> T:
        if isinstance(value, tuple(self._declared.values())):
            return cast(T, value)
        meant = self.meant_by(value)
        if meant is None:
            raise PydanticCustomError(
                "unknown_method",
                "expected a section with {tag} {names}",
                {"tag": self.tag, "names": ", ".join(self.names)},
            )
        return meant.model_validate(value)


BACKBONES: Registry[BackboneKind] = Registry("kind", Classifier, EfficientNetLite0, Torchvision, Timm)
GENERATORS: Registry[GeneratorKind] = Registry("kind", Diffusion, Gan, MeanEmbedding)
SELECTIONS: Registry[SelectionStrategy] = Registry("strategy", Semantic, Images, Random, All, NoSelection)
