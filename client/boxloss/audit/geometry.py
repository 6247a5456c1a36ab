"""Labels that are wrong by themselves, whatever a model sees."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from boxloss.audit.finding import Finding, Kind
from boxloss.audit.image import Flags, Image

_BEYOND = 0.02
"""Share of its side by which a box may reach beyond its image: tools round."""
_PIXEL = 1.0
_TINY = 1 / 500
"""Sides below so much of the image's longer side cannot be seen."""
_LONG = 20.0
"""Sides that are longer than the other by so much."""


def misshapen(image: Image, spared: Flags) -> Iterator[Finding]:
    """Boxes outside their image, degenerate, tiny, or far longer than wide.

    Args:
        image: whose labels are looked at.
        spared: labels that may be tiny or long: a model sees them, too, or they stand for many.
    """
    for row, (x1, y1, x2, y2) in enumerate(image.labels.boxes.tolist()):
        found = partial(Finding.of_label, image, row)
        width, height = x2 - x1, y2 - y1
        if not (width > 0 and height > 0):
            yield found(Kind.DEGENERATE, 1.0, f"Has no area: {width:g} x {height:g} pixels. Draw it again.")
            continue
        size = f"{width:.1f} x {height:.1f} pixels"
        if image.width and image.height:
            beyond, side = max((-x1, width), (-y1, height), (x2 - image.width, width), (y2 - image.height, height))
            if beyond > max(_PIXEL, _BEYOND * side):
                message = f"Reaches {beyond:.0f} pixels beyond the image. Cut it there."
                yield found(Kind.OUTSIDE, min(beyond / side, 1.0), message)
            share = min(width, height) / max(image.width, image.height)
            if share < _TINY and not spared[row]:
                yield found(Kind.TINY, 1 - share / _TINY, f"Is {size}. Remove it, or draw it again.")
        ratio = max(width / height, height / width)
        if ratio > _LONG and not spared[row]:
            yield found(Kind.SHAPE, 1 - _LONG / ratio / 2, f"Is {size}: {ratio:.0f} to 1. Check its edges.")
