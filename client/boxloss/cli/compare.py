"""The command that compares losses. The packages it needs come with the extras: pip install 'boxloss[audit,plots]'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console

from boxloss.calls.client import Client
from boxloss.cli import overview
from boxloss.cli.consoles import err, out
from boxloss.cli.credentials import ADDRESS, TLS, TLS_CA, TLS_CERTIFICATE, TLS_KEY, TOKEN_FILE, Credentials
from boxloss.cli.outputs import check_output
from boxloss.cli.progress import Steps
from boxloss.cli.server import connected
from boxloss.cli.sources import (
    ImagesFolder,
    LabelsFormat,
    LabelsLayout,
    LabelsNames,
    LabelsPath,
    LabelsRelative,
    PredictionsFormat,
    PredictionsLayout,
    PredictionsNames,
    PredictionsRelative,
    Reading,
    Sources,
)
from boxloss.cli.tables import ENDINGS
from boxloss.compare.matching import match_rows
from boxloss.compare.pairs import REACH, Name, Pairs, match_images
from boxloss.compare.scoring import valid_rows
from boxloss.errors import InvalidInputError, fault
from boxloss.files.boxes import BoxFile
from boxloss.files.boxes import read as read_rows
from boxloss.files.join import Joined, join
from boxloss.files.problems import Problem
from boxloss.losses.notation import parse

_WIDTH = 120
"""Of tables in a pipe."""
_PICTURES = (".png", ".svg", ".pdf")


def compare(
    labels: LabelsPath,
    predictions: Annotated[Path, typer.Option(metavar="PATH", help="A file or folder, of the same images.")],
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS",
            help="What to compare, as for `boxloss evaluate`. Repeat it for more.",
            show_default="all of the catalogue",
        ),
    ] = None,
    matching: Annotated[
        Literal["optimal", "greedy", "rows"],
        typer.Option(
            help="Which label a prediction belongs to: of its class, the best fits in all, or surer predictions first; "
            "or row i to row i of two .csv, .json or .npy files."
        ),
    ] = "optimal",
    reach: Annotated[
        float, typer.Option(min=0, help="How far apart the centers of a pair may lie, in diagonals of the label.")
    ] = REACH,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Least score of a prediction that takes part.")] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            writable=True,
            help="Write a row for each loss to a .csv or .parquet file, or everything to a .json file.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Draw it: a .png, .svg or .pdf file."),
    ] = None,
    images: ImagesFolder = None,
    labels_format: LabelsFormat = None,
    predictions_format: PredictionsFormat = None,
    labels_names: LabelsNames = None,
    predictions_names: PredictionsNames = None,
    labels_layout: LabelsLayout = None,
    predictions_layout: PredictionsLayout = None,
    labels_relative: LabelsRelative = False,
    predictions_relative: PredictionsRelative = False,
    address: Annotated[list[str] | None, ADDRESS] = None,
    tls: Annotated[bool, TLS] = False,
    tls_ca: Annotated[Path | None, TLS_CA] = None,
    tls_certificate: Annotated[Path | None, TLS_CERTIFICATE] = None,
    tls_key: Annotated[Path | None, TLS_KEY] = None,
    token_file: Annotated[Path | None, TOKEN_FILE] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to compute without a server: auto, cpu, cuda or cuda:N.", show_default="auto"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that each call to the server may take.")] = 30.0,
) -> None:
    """Compares losses over predictions and labels: which one suits these boxes, and why.

    Shows how each loss is distributed, how far losses agree which pairs are worse, whose gradients vanish or mislead,
    and how close descent brings the boxes; and recommends one. It is advice from these boxes; nothing is trained.

    Without an address, computes in this process, which needs boxloss-server.
    """
    asked = [parse(each) for each in loss or ()]
    for option, path, endings in (("--output", output, ENDINGS), ("--picture", picture, _PICTURES)):
        if path:
            check_output(option, path, endings)
    from boxloss.cli.comparison import line, show  # Only who compares needs the packages of the extra.
    from boxloss.compare.comparison import compare as compare_losses
    from boxloss.compare.export import write_comparison

    if picture:  # Whoever lacks its package is told before the work.
        from boxloss.compare.picture import draw
    unused = {
        "--images": images,
        "--labels-format": labels_format,
        "--predictions-format": predictions_format,
        "--labels-names": labels_names,
        "--predictions-names": predictions_names,
        "--labels-relative": labels_relative,
        "--predictions-relative": predictions_relative,
        "--min-score": min_score,
    }
    for name in (name for name, value in unused.items() if value and matching == "rows"):
        raise fault(name, "does not go with --matching rows, which compares two lists of boxes; leave it out")
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    problems: list[Problem] = []
    notes: list[str] = []
    with connected(address, device, timeout, credentials) as client, Steps() as steps:
        if matching == "rows":
            pairs, invalid = _rows(client, _listed(predictions, predictions_layout), _listed(labels, labels_layout))
            notes += invalid
        else:
            sources = Sources(images, steps)
            known = sources.read(labels, "labels", Reading(labels_format, labels_names, labels_layout, labels_relative))
            predicted = sources.read(
                predictions,
                "predictions",
                Reading(predictions_format, predictions_names, predictions_layout, predictions_relative),
            )
            problems = sources.problems
            joined = join(known, predicted, complete=True)  # What has no predictions has no pairs.
            notes += map(str, joined.mismatches)
            work = steps.track(joined.images, "matching", len(joined.images))
            pairs = match_images(client, work, method=matching, reach=reach, min_score=min_score)
            _check_pairs(pairs, labels, predictions, joined)
        try:
            comparison = compare_losses(
                client, pairs, asked, lambda work, description: steps.track(work, description, len(work))
            )
        except InvalidInputError as error:
            of_losses = (each.field for each in error.violations if each.field.startswith("loss "))
            raise error.renamed({field: f"--{field}" for field in of_losses}) from None
    if comparison.left_out:
        unsized = int(np.isnan(pairs.diagonals).sum())
        fix = "" if matching == "rows" else "; give --images"
        notes.append(f"{', '.join(comparison.left_out)} left out: {unsized} pairs lack the size of their image{fix}")
    overview.show_problems(problems, err)
    for note in notes:
        err.print(f"note: {note}")
    out.print(line(pairs))
    show(comparison, Console(markup=False, highlight=False, width=None if out.is_terminal else _WIDTH))
    if output:
        write_comparison(comparison, output)
        out.print(f"written: {output}")
    if picture:
        draw(comparison, picture)
        out.print(f"written: {picture}")


def _listed(path: Path, layout: Any) -> BoxFile:
    if not path.is_file():
        raise fault(path, "is no file; --matching rows takes a .csv, .json or .npy file")
    file = read_rows(path, layout)
    if file.coco and len(file):
        raise fault(path, "is COCO, whose boxes are matched by image and class; leave out --matching rows")
    return file


def _rows(client: Client, predictions: BoxFile, labels: BoxFile) -> tuple[Pairs, list[str]]:
    """Row i of both files, without those that have an invalid box or a label without area; and what was left out."""
    from boxloss.files.formats.request import corners

    matched = match_rows(predictions, labels, *(valid_rows(client, file, mask=True) for file in (predictions, labels)))
    boxes, targets = (
        np.array([corners(file.box_format, row) for row in file.boxes.tolist()]).reshape(-1, 4)  # type: ignore[arg-type]
        for file in (predictions, labels)
    )
    good = matched.paired
    solid = (targets[:, 2:] > targets[:, :2]).all(axis=1)
    notes = []
    for bad, what in ((~good, "are inverted, not finite or too large"), (good & ~solid, "have a label without area")):
        if bad.any():
            where = labels.place(int(np.flatnonzero(bad)[0]))
            notes.append(f"{int(bad.sum())} pairs of boxes {what} and are left out, the first in {where}; correct them")
    rows = np.flatnonzero(good & solid)
    if not len(rows):
        raise fault(labels.path, f"has no pair to compare losses over. {'; '.join(notes)}")
    names = [Name(None, int(row), int(row), None) for row in rows]
    count = len(labels)
    return Pairs(boxes[rows], targets[rows], names, np.full(len(rows), np.nan), count, count), notes


def _check_pairs(pairs: Pairs, labels: Path, predictions: Path, joined: Joined) -> None:
    """Says why there are no pairs, if there are none."""
    if len(pairs):
        return
    notes = "; ".join(map(str, joined.mismatches))
    if not pairs.candidates:
        raise fault(
            predictions, f"no box is in an image of {labels} and has the --min-score; correct ids or names. {notes}"
        )
    raise fault(
        predictions,
        f"none of its {pairs.candidates} boxes is near one of the {pairs.labels} labels of its class in {labels}; "
        f"correct classes or the units of boxes, or raise --reach. {notes}",
    )
