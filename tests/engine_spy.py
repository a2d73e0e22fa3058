"""Standing between fine-tuning and its gradient engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
from torch import Tensor
from torch.func import functional_call

from privimage.privacy.clipping import ClippedSum
from privimage.privacy.gradients import GradientEngine, LossOfRows

# Typed Any: what is replaced in it is no part of its interface.
private_sum: Any = import_module("privimage.generators.training.private_sum")

Rows = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the engine: images, noise, sigmas and labels of some rows, the draws of an image side by side."""

    engine: GradientEngine
    loss_of_rows: LossOfRows
    module: Any
    parameters: Mapping[str, Tensor]
    rows: Rows
    settings: Mapping[str, Any]

    def go_on(self, rows: Rows | None = None, **settings: Any) -> ClippedSum:
        """What the engine itself gives, for these or other rows."""
        return self.engine.clipped_sum(
            self.parameters, self.rows if rows is None else rows, **{**self.settings, **settings}
        )

    def loss_of_image(self, parameters: Mapping[str, Tensor], *own: Tensor) -> Tensor:
        """Mean over the draws of one image."""
        return self.loss_of_rows(lambda *args: functional_call(self.module, dict(parameters), args), *own).mean()

    def images(self) -> list[list[Tensor]]:
        """The rows of each image."""
        draws = self.settings["draws"]
        return [[tensor[start : start + draws] for tensor in self.rows] for start in range(0, len(self.rows[0]), draws)]


def intercept(patch: pytest.MonkeyPatch, instead: Callable[[Call], ClippedSum]) -> None:
    """From now on fine-tuning gets what `instead` makes of each of its calls of the engine."""
    real = private_sum.gradient_engine

    def engine(module: Any, loss_of_rows: LossOfRows, **choice: Any) -> Any:
        inner = real(module, loss_of_rows, **choice)

        class Intercepted:
            def clipped_sum(self, parameters: Mapping[str, Tensor], rows: Rows, **settings: Any) -> ClippedSum:
                return instead(
                    Call(
                        engine=inner,
                        loss_of_rows=loss_of_rows,
                        module=module,
                        parameters=parameters,
                        rows=rows,
                        settings=settings,
                    )
                )

        return Intercepted()

    patch.setattr(private_sum, "gradient_engine", engine)
