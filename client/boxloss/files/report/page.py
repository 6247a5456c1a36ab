"""The page of a report."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from boxloss.audit.agreement import Agreement
from boxloss.audit.finding import Finding, Kind
from boxloss.audit.image import Id, Image
from boxloss.audit.rules import Rules
from boxloss.audit.summary import Summary
from boxloss.files.exports.findings import row_of
from boxloss.files.join import Mismatch
from boxloss.files.pictures import Pictures
from boxloss.files.problems import Problem
from boxloss.files.report.charts import bars, confusion
from boxloss.files.report.scene import HEIGHT, WIDTH, Scene, scene_of

_FOLDER = Path(__file__).parent
_MOST_PROBLEMS = 500
"""Listed in a page; the JSON file has them all."""

TITLES = {
    Kind.MISSING: "Missing label",
    Kind.SPURIOUS: "Spurious label",
    Kind.BAD_LOCATION: "Bad location",
    Kind.WRONG_CLASS: "Wrong class",
    Kind.DUPLICATE: "Duplicate",
    Kind.OUTSIDE: "Outside its image",
    Kind.DEGENERATE: "Degenerate",
    Kind.TINY: "Tiny",
    Kind.SHAPE: "Odd shape",
}
MEANINGS = {
    Kind.MISSING: "A model sees an object that has no label.",
    Kind.SPURIOUS: "A label where the model sees nothing.",
    Kind.BAD_LOCATION: "A label that fits its object badly.",
    Kind.WRONG_CLASS: "A label whose object the model takes for something else.",
    Kind.DUPLICATE: "A second label of one object.",
    Kind.OUTSIDE: "A label that reaches beyond its image.",
    Kind.DEGENERATE: "A label without area, or with corners in the wrong order.",
    Kind.TINY: "A label too small to be seen.",
    Kind.SHAPE: "A label far longer than wide, or the reverse.",
}

Track = Callable[[Sequence[Finding], str], Iterable[Finding]]
"""Goes over findings as they are drawn, and shows the progress."""


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        labels: where they come from.
        predictions: where they come from; None where there were none.
        rules: of the audit.
        summary: of all images.
        findings: those to show, the surest first.
        images: by id, all that have findings.
        problems: of the files.
        mismatches: of labels and predictions.
        agreement: of annotators; None where there are not several.
        pictures: to draw over; None to draw on blank sheets.
    """

    labels: str
    predictions: str | None
    rules: Rules
    summary: Summary
    findings: Sequence[Finding]
    images: Mapping[Id, Image]
    problems: Sequence[Problem]
    mismatches: Sequence[Mismatch]
    agreement: Agreement | None
    pictures: Pictures | None


@dataclass(frozen=True)
class _Card:
    number: int
    finding: Finding
    name: str
    scene: Scene


def render(report: Report, track: Track = lambda findings, description: findings) -> str:
    """The page: HTML that loads nothing, and forbids the browser to try.

    Args:
        report: what it tells.
        track: shows the progress of drawing.
    """
    cards = [
        _Card(number, finding, image.file_name or str(image.image_id), scene_of(finding, image, report.pictures))
        for number, finding in enumerate(track(report.findings, "drawing findings"))
        for image in [report.images[finding.image_id]]
    ]
    rows = [row_of(finding, report.images[finding.image_id]) for finding in report.findings]
    data = _json({"findings": rows, "key": hashlib.sha256(json.dumps(rows).encode()).hexdigest()})
    style, script = (Markup((_FOLDER / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    summary = report.summary
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("report.html").render(
        report=report,
        summary=summary,
        cards=cards,
        total=sum(summary.findings.values()),
        kinds=[kind for kind in Kind if summary.findings.get(kind)],
        shown_kinds=[kind for kind in Kind if any(card.finding.kind is kind for card in cards)],
        shown_classes=sorted({card.finding.class_name for card in cards}),
        classes=sorted(summary.classes.items(), key=lambda item: (-sum(item[1].findings.values()), item[0])),
        bars=bars(summary.iou_histogram.tolist()),
        confusion=confusion(summary.confusion),
        problems=report.problems[:_MOST_PROBLEMS],
        titles=TITLES,
        meanings=MEANINGS,
        width=WIDTH,
        height=HEIGHT,
        version=version("boxloss"),
        data=data,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _json(value: Any) -> Markup:
    """JSON that a script element can hold: no text in it ends the element."""
    text = json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
