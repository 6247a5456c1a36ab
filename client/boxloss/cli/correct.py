"""Correcting labels as an audit has found. Its packages come with the extra: pip install 'boxloss[audit]'."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from boxloss.audit.corrections import corrected
from boxloss.audit.finding import Finding
from boxloss.audit.image import Id, Image
from boxloss.cli import overview
from boxloss.cli.consoles import err, out
from boxloss.cli.findings import read_findings
from boxloss.cli.outputs import check_output
from boxloss.cli.progress import Steps
from boxloss.cli.sources import (
    ImagesFolder,
    LabelsFormat,
    LabelsLayout,
    LabelsNames,
    LabelsPath,
    LabelsRelative,
    PredictionsFormat,
    PredictionsLayout,
    PredictionsRelative,
    Reading,
    Sources,
)
from boxloss.errors import fault
from boxloss.files.exports import write_coco, write_cvat, write_labelstudio
from boxloss.files.join import join

_WRONG = 3
"""Findings that do not fit their labels, named in a message."""
_APART = 0.01
"""Pixels, or share of a box's side, by which a label may be off the box of its finding: formats round."""


def correct(
    labels: LabelsPath,
    accepted: Annotated[
        Path,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A report's download, or --output's."),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, writable=True, help="The corrected labels: .json, or .xml.")
    ],
    form: Annotated[
        Literal["coco", "cvat", "labelstudio"] | None,
        typer.Option(
            "--format",
            help="coco; cvat: for images 1.1; labelstudio: tasks for the images with findings.",
            show_default="by ending",
        ),
    ] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Accept only findings at least so sure.")] = 0.0,
    predictions: Annotated[
        Path | None, typer.Option(metavar="PATH", help="As for audit, if they tell the sizes of images.")
    ] = None,
    images: ImagesFolder = None,
    labels_format: LabelsFormat = None,
    predictions_format: PredictionsFormat = None,
    labels_names: LabelsNames = None,
    labels_layout: LabelsLayout = None,
    predictions_layout: PredictionsLayout = None,
    labels_relative: LabelsRelative = False,
    predictions_relative: PredictionsRelative = False,
) -> None:
    """Corrects labels as accepted findings say, and writes them for COCO, CVAT or Label Studio.

    The labels are those that were audited, unchanged: a finding whose label is not there any more is refused, and
    nothing is written.
    """
    form = form or ("cvat" if output.suffix.lower() == ".xml" else "coco")
    check_output("--output", output, (".xml",) if form == "cvat" else (".json",))
    chosen: dict[Id, list[Finding]] = defaultdict(list)
    for finding in read_findings(accepted):
        if finding.score >= min_score:
            chosen[finding.image_id].append(finding)
    with Steps() as steps:
        sources = Sources(images, steps)
        known = sources.read(labels, "labels", Reading(labels_format, labels_names, labels_layout, labels_relative))
        predicted = predictions and sources.read(
            predictions, "predictions", Reading(predictions_format, None, predictions_layout, predictions_relative)
        )
        joined = join(known, predicted or None)
        _check(chosen, {image.image_id: image for image in joined.images}, accepted)
        results = [corrected(image, chosen.get(image.image_id, ())) for image in joined.images]
        left_out = 0
        match form:
            case "coco":
                original = known.path if known.format == "coco" else None
                write_coco(results, output, known.categories, original)
            case "cvat":
                write_cvat(results, output)
            case "labelstudio":
                left_out = write_labelstudio(results, chosen, output)
    overview.show_problems(sources.problems, err)
    for mismatch in joined.mismatches:
        err.print(f"note: {mismatch}")
    if lost := sum(image.skipped for image in known.images):
        err.print(f"{lost} boxes could not be read and are not in {output}")
    if left_out:
        err.print(f"{left_out} images have no size and are not in {output}; give --images")
    changes = Counter(str(finding.kind) for found in chosen.values() for finding in found)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(changes.items())) or "none"
    out.print(f"{sum(changes.values())} findings accepted ({counts}); written: {output}")


def _check(chosen: Mapping[Id, Sequence[Finding]], images: Mapping[Id, Image], path: Path) -> None:
    """Findings are about these very labels, or nothing is corrected."""
    wrong = [
        f"{finding.kind} in image {image_id!r}"
        for image_id, findings in chosen.items()
        for finding in findings
        if not _fits(finding, images.get(image_id))
    ]
    if wrong:
        more = f" and {len(wrong) - _WRONG} more" if len(wrong) > _WRONG else ""
        fix = "give the labels that were audited, unchanged, and --images or --predictions if these told the sizes"
        raise fault(path, f"the labels lack what it accuses: {', '.join(wrong[:_WRONG])}{more}; {fix}")


def _fits(finding: Finding, image: Image | None) -> bool:
    if image is None:
        return False
    if finding.label is None:
        return True
    labels = image.labels
    if not 0 <= finding.label < len(labels) or labels.classes[finding.label] != finding.class_name:
        return False
    side = max(abs(finding.box[2] - finding.box[0]), abs(finding.box[3] - finding.box[1]))
    return bool(np.abs(labels.boxes[finding.label] - finding.box).max() <= _APART * max(side, 1e-6))
