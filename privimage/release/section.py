"""The section of a report that a certificate fills. No torch."""

from __future__ import annotations

from privimage.release.certificate import Certificate
from privimage.reports.blocks import Section, Table
from privimage.reports.page import Noted

__all__ = ["accounting"]


def accounting(certificate: Certificate) -> Section:
    """What touched the sensitive images, what each of it would cost alone, what all cost together, where it is written."""
    mechanisms = [
        (
            Noted(text=mechanism.stage, note=mechanism.in_words),
            f"{mechanism.epsilon_alone:.4g}",
            f"{mechanism.ledger_entry.sequence:06d}",
        )
        for mechanism in certificate.mechanisms
    ]
    entries = [
        (f"{entry.sequence:06d}", entry.kind, Noted(text=entry.id, note=f"sha256 {entry.sha256[:16]}…"))
        for entry in certificate.ledger.entries
    ]
    foot = ("Together, composed as one", f"{certificate.epsilon_computed:.4g}", "")
    return Section(
        title="Privacy accounting",
        kind="charged",
        paid_by=tuple(mechanism.ledger_entry.id for mechanism in certificate.mechanisms),
        intro=f"Every mechanism that touched the sensitive images. At delta {certificate.delta:g}.",
        blocks=[
            Table(
                head=("Mechanism", "Epsilon alone", "Ledger entry"),
                rows=mechanisms,
                numbers=(1, 2),
                foot=foot,
            ),
            Table(head=("Entry", "Kind", "Id and digest"), rows=entries, caption="The ledger of these images"),
        ],
    )
