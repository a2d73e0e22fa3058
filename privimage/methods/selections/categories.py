"""Strategies that give each sensitive class so many public categories, no category to two classes."""

from __future__ import annotations

from pydantic import Field

from privimage.errors import ConfigError
from privimage.methods.selection import SomeImages

__all__ = ["SomeCategories"]


class SomeCategories(SomeImages):
    """As many categories for each class."""

    categories_per_class: int = Field(default=3, ge=1, le=1000, description="Public categories per sensitive class.")

    def check(self, num_classes: int, num_categories: int) -> None:
        asked = self.categories_per_class * num_classes
        if asked <= num_categories:
            return
        cure = f"lower it to at most {num_categories // num_classes}"
        if num_categories < num_classes:
            cure = (
                f"give a public set with {num_classes} categories or more and set it to 1, or set selection.strategy to all "
                "(train on the whole public set) or none"
            )
        raise ConfigError(
            f"selection.categories_per_class = {self.categories_per_class} asks for {asked} categories for {num_classes} "
            f"classes, but the public set has {num_categories}: {cure}."
        )
