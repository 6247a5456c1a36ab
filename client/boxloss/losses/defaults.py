"""The catalogue at its defaults."""

from __future__ import annotations

from dataclasses import MISSING, fields

from boxloss.losses.loss import CATALOGUE, Loss


def defaults(base: Loss) -> list[Loss]:
    """Every loss of the catalogue at its defaults.

    Args:
        base: what those modify that modify another.
    """
    return [
        kind(**{each.name: base for each in fields(kind) if each.default is MISSING}) for kind in CATALOGUE.values()
    ]
