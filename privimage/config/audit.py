"""The audit of fine-tuning."""

from __future__ import annotations

from pydantic import Field, model_validator

from privimage.config.form import Section

__all__ = ["AuditConfig"]


class AuditConfig(Section):
    """Audit of fine-tuning: the same mechanism and network on public images and made-up canaries; costs no epsilon."""

    canaries: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Made-up images, each inserted by a coin: at least 100, and more show more; 0 = no audit.",
    )
    stand_ins: int = Field(
        default=1000,
        ge=1,
        title="Stand-ins",
        description="Public images in the place of the sensitive ones, at most; time grows with them and the canaries.",
    )
    num_steps: int | None = Field(
        default=None,
        ge=1,
        title="Number of steps",
        description="DP-SGD steps to audit; none = as many as fine-tuning has. The claim is that of these steps.",
    )

    @model_validator(mode="after")
    def _enough_to_show_something(self) -> AuditConfig:
        if 0 < self.canaries < 100:
            raise ValueError(f"canaries is {self.canaries}, but an audit needs at least 100; 0 = no audit")
        return self
