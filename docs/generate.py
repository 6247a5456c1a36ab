"""Writes docs/losses.md from the catalogue: python docs/generate.py.

What the catalogue does not know stands here: how a loss's gradient departs from its formula, and what each picture
shows. Conventions that hold for all losses are written by hand, in docs/conventions.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from google.protobuf import json_format

import boxloss.losses
from boxloss.contract.wire import loss_to_message
from boxloss.losses import CATALOGUE, Base, CIoU, GIoU, Loss
from boxloss.losses.parameters import Choice, Integer, Number, Switch

HERE = Path(__file__).parent
PAGE = HERE / "losses.md"

HEADINGS = {
    "coordinates": "Coordinates",
    "iou": "IoU and its penalties",
    "modifiers": "Modifiers",
    "oriented": "Oriented boxes",
}
"""Headings of the groups, by the module that defines them."""

WHOLE = "Of everything in the formula."

GRADIENTS = {
    "l1": "The sign of each difference; 0 where the coordinates agree.",
    "l2": "2 d in each coordinate.",
    "smooth_l1": "d / beta in each coordinate, at most 1 in size.",
    "huber": "d in each coordinate, at most delta in size.",
    "balanced_l1": "alpha ln(b |d| / beta + 1) in each coordinate, at most gamma in size, with the sign of d.",
    "nwd": "Of everything in the formula; 0 for identical boxes.",
    "iou": "Of everything in the formula; 0 where the boxes do not overlap, and below the floor of the logarithm.",
    "ciou": "The trade-off alpha is constant.",
    "siou": "Of everything in the formula, A too; where the centers meet, A is 0 and has no gradient.",
    "wiou": "c and the factor r are constant.",
    "piou_v2": "Of everything in the formula, the attention too.",
    "alpha_iou": "Of everything in the formula, but for what the base holds constant. A term of 0 has no gradient.",
    "focal": "The weight is constant unless `detach_weight` is false; so is what the base holds constant.",
    "focal_eiou": "The weight is constant unless `detach_weight` is false.",
    "inner": "Of everything in the formula, but for what the base holds constant.",
    "focaler": "Of everything in the formula, but for what the base holds constant.",
}
"""What the gradient is of, by loss; WHOLE for all others."""


@dataclass(frozen=True)
class Picture:
    """A picture of docs/pictures, which docs/pictures.py draws."""

    title: str
    caption: str
    shows: tuple[str, ...]
    """Names of the losses in it."""


PICTURES = {
    "slide": Picture(
        "A box slides over the target and past it",
        "IoU, Inner-IoU and Focal-EIoU are flat once the boxes are apart, and Focal-EIoU scores those like identical "
        "ones; MPDIoU hardly pulls, NWD and PIoU not from far, and PIoU v2 pushes away.",
        (
            "l1",
            "l2",
            "smooth_l1",
            "huber",
            "balanced_l1",
            "bounded_iou",
            "nwd",
            "iou",
            "giou",
            "diou",
            "ciou",
            "eiou",
            "siou",
            "wiou",
            "mpdiou",
            "piou",
            "piou_v2",
            "shape_iou",
            "alpha_iou",
            "focal",
            "focal_eiou",
            "inner",
            "focaler",
        ),
    ),
    "nested": Picture(
        "A small box slides into the target, and grows in it",
        "Inside the target GIoU is the IoU loss: like PIoU, it does not see where the box is, which DIoU, CIoU, EIoU "
        "and SIoU do; about the center DIoU and CIoU are the IoU loss too.",
        ("iou", "giou", "diou", "ciou", "eiou", "siou", "piou"),
    ),
    "proportional": Picture(
        "A box about the target's center grows, or changes its proportions",
        "With the target's proportions CIoU's v is 0, and CIoU, DIoU, GIoU and IoU are one, while EIoU, SIoU and PIoU "
        "compare the sides; with other proportions, v adds little.",
        ("iou", "giou", "diou", "ciou", "eiou", "siou", "piou"),
    ),
    "field": Picture(
        "Where descent moves the center of a box",
        "A square around a target twice as wide: apart from it, IoU and Focal-EIoU do not pull, Bounded IoU only along "
        "the axis in which the offset is small, DIoU and EIoU little or outwards there, and PIoU v2 leads away.",
        (
            "iou",
            "giou",
            "diou",
            "ciou",
            "eiou",
            "siou",
            "wiou",
            "mpdiou",
            "piou",
            "piou_v2",
            "nwd",
            "bounded_iou",
            "focal_eiou",
        ),
    ),
    "oriented": Picture(
        "An oriented box turns about the target's center, or slides along its long side",
        "The losses of Gaussians do not see a square turn; IoU and then ProbIoU are flat past the target, GWD nearly "
        "everywhere, as it depends on the boxes' unit; GIoU leads long boxes that nearly cross to a right angle.",
        ("iou", "giou", "prob_iou", "gwd", "kld", "bcd", "kf_iou"),
    ),
}
"""The pictures, by the names of their files."""


def page() -> str:
    """The text of docs/losses.md."""
    return "\n\n".join(_blocks()) + "\n"


def example(loss: type[Loss]) -> Loss:
    """The loss with its defaults; where it modifies another, GIoU."""
    return loss(**{each.name: GIoU() for each in fields(loss) if each.default is MISSING})


def python(loss: Loss) -> str:
    """The loss with all its parameters, as the SDK takes it."""
    return re.sub(r"\b([A-Z]\w*)\(", r"boxloss.\1(", repr(loss)).replace("'", '"')


def command(loss: Loss) -> str:
    """The loss with all its parameters, as the command line takes it."""
    inner = ",".join(f"{each.name}={_word(getattr(loss, each.name))}" for each in fields(loss))
    return f"{loss.name}:{inner}" if inner else loss.name


def raw(loss: Loss) -> str:
    """The loss with all its parameters, as JSON of the contract."""
    return json.dumps(json_format.MessageToDict(loss_to_message(loss), preserving_proto_field_name=True))


def _blocks() -> Iterator[str]:
    yield "# Losses"
    yield "<!-- Generated from the catalogue; do not edit. Run: python docs/generate.py -->"
    yield (
        f"The {len(CATALOGUE)} losses, as the server computes them. [Conventions](conventions.md) says what holds for "
        "all of them, gradients included, and where a user of another library would see another number. Each section "
        "ends with the loss at its defaults, as the SDK, the command and a request spell it."
    )
    yield (boxloss.losses.__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    yield "## Overview"
    yield _overview()
    yield "## Pictures"
    yield (
        "`python docs/pictures.py` draws them from the losses themselves, at their defaults unless named. The target's "
        "short side has 20 pixels, the image 640 x 480. In panels from 0 to 1, losses and slopes are shares of their "
        "largest value; flat is a slope below 0.01 for each short side, or radian."
    )
    for name, picture in PICTURES.items():
        yield f"### {picture.title}"
        yield f"![{picture.title}](pictures/{name}.png)"
        yield picture.caption
    for module, group in groupby(CATALOGUE.values(), lambda loss: loss.__module__):
        yield f"## {HEADINGS[module.rsplit('.', 1)[-1]]}"
        yield (sys.modules[module].__doc__ or "").strip()
        for loss in group:
            yield from _section(loss)


def _overview() -> str:
    return _table(
        ("loss", "name", "class", "axis-aligned", "oriented", "modifiable", "needs"),
        (
            (
                f"[{loss.title}](#{anchor(loss.title)})",
                f"`{loss.name}`",
                f"`{loss.__name__}`",
                _when(loss, lambda each: each.axis_aligned),
                _when(loss, lambda each: each.oriented),
                _when(loss, lambda each: each.modifiable),
                _needs(loss),
            )
            for loss in CATALOGUE.values()
        ),
    )


def _needs(loss: type[Loss]) -> str:
    when = _when(loss, lambda each: bool(each.needed))
    return " ".join((*(f"`{need}`" for need in loss.needs), *([when] if when.startswith("if") else [])))


def _section(loss: type[Loss]) -> Iterator[str]:
    shown = [f"[{each.title.lower()}](#{anchor(each.title)})" for each in PICTURES.values() if loss.name in each.shows]
    usual = example(loss)
    yield f"### {loss.title}"
    yield loss.summary
    yield f"`{loss.formula}`"
    yield "\n".join(
        f"- **{title}:** {text}"
        for title, text in (
            ("Paper", re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", loss.paper)),
            ("Gradient", GRADIENTS.get(loss.name, WHOLE)),
            ("Blind", loss.blind_spots),
            ("Elsewhere", loss.aliases),
            ("Seen in", "; ".join(shown)),
        )
        if text
    )
    if fields(loss):
        yield _table(
            ("parameter", "default", "values", "meaning"),
            (
                (
                    f"`{each.name}`",
                    _default(each.default),
                    _values(each.metadata["kind"]),
                    each.metadata["kind"].summary,
                )
                for each in fields(loss)
            ),
        )
    yield "\n".join(
        (
            "```",
            python(usual),
            f"--loss {command(usual)}",
            raw(usual),
            "```",
        )
    )


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def anchor(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(value: object) -> str:
    return "must be given" if value is MISSING else f"`{_word(value)}`"


def _word(value: object) -> str:
    match value:
        case Loss():
            inner = command(value).partition(":")[2]
            return f"{value.name}({inner})" if inner else value.name
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _values(kind: object) -> str:
    match kind:
        case Number():
            return kind.range
        case Integer():
            return f"{kind.minimum} to {kind.maximum}"
        case Switch():
            return "true, false"
        case Choice():
            return ", ".join(f"`{choice}`" for choice in kind.choices)
        case Base(weighted=weighted):
            return "any modifiable loss, or Alpha-IoU" if weighted else "any modifiable loss"
        case _:
            raise TypeError(kind)


def _when(loss: type[Loss], holds: Callable[[Loss], bool]) -> str:
    """Whether something holds for a loss: "yes", "" for no, or for which values of a parameter."""
    usual = example(loss)
    for each in fields(loss):
        values = _variants(each.metadata["kind"])
        chosen = [value for value in values if holds(replace(usual, **{each.name: value}))]
        if 0 < len(chosen) < len(values):
            if isinstance(each.metadata["kind"], Base):
                return "as its base"
            return f"if {each.name} is {' or '.join(map(str, chosen))}"
    return "yes" if holds(usual) else ""


def _variants(kind: object) -> tuple[Any, ...]:
    match kind:
        case Choice():
            return kind.choices
        case Integer():
            return tuple(range(kind.minimum, kind.maximum + 1))
        case Base():
            return (GIoU(), CIoU())
        case _:
            return ()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
