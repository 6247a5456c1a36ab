"""An audit on a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from boxloss.audit.agreement import Agreement, Share
from boxloss.audit.finding import Kind
from boxloss.audit.image import Id, Image
from boxloss.audit.summary import Summary
from boxloss.files.problems import Problem

_CLASSES = 15
_IMAGES = 8
_PAIRS = 10
_PROBLEMS = 20


def line(summary: Summary) -> str:
    """One line: what was audited, and how much was found of which kind."""
    found = [f"{count} {kind}" for kind, count in summary.findings.items() if count]
    total = sum(summary.findings.values())
    listed = f": {', '.join(found)}" if found else ""
    audited = f"{summary.images} images, {summary.labels} labels, {summary.predictions} predictions"
    return f"{audited}; {total} findings{listed}"


def show(summary: Summary, images: Mapping[Id, Image], console: Console) -> None:
    """Prints tables: classes with most findings, and worst images."""
    kinds = [kind for kind in Kind if summary.findings.get(kind)]
    if not kinds:
        return
    classes = sorted(summary.classes.items(), key=lambda item: (-sum(item[1].findings.values()), item[0]))
    view = _table("class", "labels", "matched", "mean IoU", *(kind.replace("_", " ") for kind in kinds))
    for name, each in classes[:_CLASSES]:
        iou = f"{each.mean_iou:.2f}" if each.matched else ""
        counts = (str(each.findings[kind] or "") for kind in kinds)
        view.add_row(name, str(each.labels), str(each.matched), iou, *counts)
    console.print(view)
    _more(len(classes), _CLASSES, "classes", console)
    view = _table("worst image", "sum of scores")
    for image_id, score in summary.worst_images[:_IMAGES]:
        file_name, shown = images[image_id].file_name, str(image_id)
        view.add_row(shown if file_name in (None, shown) else f"{shown} ({file_name})", f"{score:.2f}")
    console.print(view)


def show_agreement(agreement: Agreement, console: Console) -> None:
    """Prints how far annotators agree: overall, each, in pairs and by class."""
    console.print(
        f"{agreement.images} images have several annotators; Krippendorff's alpha of their classes: "
        f"{_number(agreement.alpha)}"
    )
    pairs = ((f"{one} and {other}", share) for (one, other), share in agreement.pairs.items())
    for name, shares, most in (
        ("annotator", agreement.annotators.items(), _PAIRS),
        ("pair", pairs, _PAIRS),
        ("class", agreement.classes.items(), _CLASSES),
    ):
        _shares(name, list(shares), most, console)


def show_problems(problems: Sequence[Problem], console: Console) -> None:
    """Prints what is wrong with files, and how much was skipped for it."""
    for problem in problems[:_PROBLEMS]:
        console.print(f"{problem}")
    if len(problems) > _PROBLEMS:
        console.print(f"and {len(problems) - _PROBLEMS} more problems; audit --output FILE.json lists them all")
    skipped = Counter(problem.skipped for problem in problems if problem.skipped)
    if skipped:
        console.print("skipped: " + ", ".join(f"{count} {what}" for what, count in sorted(skipped.items())))


def _shares(name: str, shares: Iterable[tuple[str, Share]], most: int, console: Console) -> None:
    rows = sorted(shares, key=lambda item: item[1].agreement)
    view = _table(name, "boxes", "with counterpart", "same class", "agreement", "mean IoU")
    for each, share in rows[:most]:
        counts = map(str, (share.boxes, share.matched, share.same_class))
        view.add_row(each, *counts, _number(share.agreement), _number(share.mean_iou))
    console.print(view)
    _more(len(rows), most, f"rows by {name}, least agreement first", console)


def _table(first: str, *names: str) -> Table:
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    view.add_column(first, overflow="fold")
    for name in names:
        view.add_column(name, justify="right")
    return view


def _more(count: int, shown: int, things: str, console: Console) -> None:
    if count > shown:
        console.print(f"{shown} of {count} {things} shown; --report FILE shows them all", style="dim")
    console.print()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
