"""The audit of labels. Its packages come with the extra: pip install 'boxloss[audit]'."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from rich.console import Console

from boxloss.audit.agreement import Agreement, Agreements
from boxloss.audit.dataset import Audit
from boxloss.audit.dataset import audit as audit_here
from boxloss.audit.finding import Finding
from boxloss.audit.image import Id, Image, Labels
from boxloss.audit.matching import Matching
from boxloss.audit.rules import Rules
from boxloss.audit.summary import Summary
from boxloss.cli import overview
from boxloss.cli.consoles import err, out
from boxloss.cli.credentials import ADDRESS, TLS, TLS_CA, TLS_CERTIFICATE, TLS_KEY, TOKEN_FILE, Credentials
from boxloss.cli.findings import write_json, write_table
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
    PredictionsNames,
    PredictionsRelative,
    Reading,
    Sources,
)
from boxloss.connection.channel import name_of
from boxloss.errors import fault
from boxloss.files.annotations import Source
from boxloss.files.exports import write_coco
from boxloss.files.exports.findings import row_of
from boxloss.files.join import EXAMPLES, Joined, Mismatch, by_annotator, join
from boxloss.files.problems import Problem

if TYPE_CHECKING:  # Only audits need the extra's packages.
    from boxloss.files.pictures import Pictures

EXIT_FOUND = 4
"""Exit code of an audit that found more than it may."""


def audit(
    labels: LabelsPath,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file or folder. Without it, only geometry and duplicates are audited."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write a report, one .html file."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, writable=True, help="Write all findings to a .json, .csv or .parquet file."
        ),
    ] = None,
    images: ImagesFolder = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="The model saw all images: where it says nothing, it found nothing.")
    ] = False,
    matching: Annotated[Matching, typer.Option(help="How predictions find labels: greedily as COCO, or optimally.")] = (
        "greedy"
    ),
    min_iou: Annotated[float, typer.Option(help="IoU from which on both mean one object.")] = Rules.min_iou,
    min_score: Annotated[float, typer.Option(help="Least score of a prediction that accuses.")] = Rules.min_score,
    worst: Annotated[int, typer.Option(min=0, help="Findings that the report shows, the surest first.")] = 200,
    fail_over: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Exit 4 if there are more findings; for CI.")
    ] = None,
    fail_score: Annotated[
        float | None, typer.Option(metavar="SCORE", min=0, max=1, help="Count only findings at least so sure.")
    ] = None,
    consensus: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write what most annotators agree on: COCO."),
    ] = None,
    labels_format: LabelsFormat = None,
    predictions_format: PredictionsFormat = None,
    labels_names: LabelsNames = None,
    predictions_names: PredictionsNames = None,
    labels_layout: LabelsLayout = None,
    predictions_layout: PredictionsLayout = None,
    labels_relative: LabelsRelative = False,
    predictions_relative: PredictionsRelative = False,
    engine: Annotated[
        Literal["embedded", "ray"], typer.Option(help="What audits without a server: this process, or Ray Data.")
    ] = "embedded",
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster.", show_default="one on this computer")
    ] = None,
    address: Annotated[list[str] | None, ADDRESS] = None,
    tls: Annotated[bool, TLS] = False,
    tls_ca: Annotated[Path | None, TLS_CA] = None,
    tls_certificate: Annotated[Path | None, TLS_CERTIFICATE] = None,
    tls_key: Annotated[Path | None, TLS_KEY] = None,
    token_file: Annotated[Path | None, TOKEN_FILE] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that a server may be away or busy.")] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print one line, and no progress.")] = False,
) -> None:
    """Audits labels: what is missing, spurious, badly placed, misnamed, repeated or out of shape, and how sure that is.

    Labels are held against a model's predictions of the same images. What is wrong with the files themselves is named,
    and the rest goes on. Exits 0 whatever is found, unless --fail-over or --fail-score says what is too much: then 4.
    """
    for name, path, endings in (
        ("--report", report, (".html", ".htm")),
        ("--output", output, (".json", ".csv", ".parquet")),
        ("--consensus", consensus, (".json",)),
    ):
        if path:
            check_output(name, path, endings)
    rules = Rules(matching, min_iou, min_score)
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    with _engine(engine, ray_address, address, timeout, credentials) as audited_by, Steps(quiet) as steps:
        sources = Sources(images, steps)
        known = sources.read(labels, "labels", Reading(labels_format, labels_names, labels_layout, labels_relative))
        predicted = predictions and sources.read(
            predictions,
            "predictions",
            Reading(predictions_format, predictions_names, predictions_layout, predictions_relative),
        )
        joined = join(known, predicted or None, complete=complete)
        _check_joined(joined, labels, predictions)
        joined = dataclasses.replace(joined, mismatches=(*joined.mismatches, *_unsized(joined.images)))
        agreement = _agreement(known, consensus)
        apart = [part for image in joined.images for part in _by_annotator(image)]
        audited = audited_by([part.image for part in apart], rules, worst=worst)
        findings = [
            part.restored(finding)
            for part, each in zip(apart, steps.track(audited, "auditing", len(apart)), strict=True)
            for finding in each.findings
        ]
        summary = _whole(audited.summary(), joined.images)
        findings.sort(key=lambda finding: -finding.score)
        by_id = {image.image_id: image for image in joined.images}
        if report:
            from boxloss.files.report import Report, render

            page = render(
                Report(
                    str(labels),
                    str(predictions) if predictions else None,
                    rules,
                    summary,
                    findings[:worst],
                    by_id,
                    sources.problems,
                    joined.mismatches,
                    agreement,
                    sources.pictures,
                ),
                lambda work, description: steps.track(work, description, len(work)),
            )
            report.write_text(page, "utf-8", "replace")
        notes = [*map(str, joined.mismatches), *_missing(sources.pictures)]
        if output:
            rows = [row_of(finding, by_id[finding.image_id]) for finding in findings]
            if output.suffix.lower() == ".json":
                write_json(output, rows, summary, sources.problems, notes)
            else:
                write_table(output, rows)
    _tell(summary, by_id, agreement, sources.problems, notes, quiet=quiet)
    for path in (report, output, consensus) if not quiet else ():
        if path:
            out.print(f"written: {path}")
    _judge(findings, fail_over, fail_score)


@contextmanager
def _engine(
    engine: str, ray_address: str | None, address: Sequence[str] | None, timeout: float, credentials: Credentials
) -> Iterator[Callable[..., Audit]]:
    """What audits images: a server, Ray, or this process."""
    if address:
        if engine == "ray":
            raise fault("--engine", f"is ray, and there is the server {name_of(address)}; leave one of them out")
        with credentials.client(address, timeout) as client:
            yield client.audit
        return
    credentials.refuse_unused()
    if engine == "ray":
        from boxloss.audit.ray import audit_on_ray  # A heavy extra of its own.

        yield partial(audit_on_ray, address=ray_address)
        return
    if ray_address:
        raise fault("--ray-address", "is for --engine ray; give that, too, or leave it out")
    yield audit_here


def _check_joined(joined: Joined, labels: Path, predictions: Path | None) -> None:
    """An audit of nothing must not look like one that found nothing."""
    notes = "; ".join(map(str, joined.mismatches))
    if not joined.images:
        raise fault(labels, f"no image is left to audit: {notes}")
    if predictions and all(image.predictions is None for image in joined.images):
        raise fault(predictions, f"no image is one of {labels}; correct ids or names, or say --complete. {notes}")


def _unsized(images: Sequence[Image]) -> Iterator[Mismatch]:
    unsized = [str(image.image_id) for image in images if image.width in (None, 1.0)]
    if unsized:
        what = "images are of unknown size: labels that reach beyond them are not found; give --images"
        yield Mismatch(what, len(unsized), tuple(unsized[:EXAMPLES]))


def _agreement(labels: Source, consensus: Path | None) -> Agreement | None:
    """How far annotators agree; writes what most of them do."""
    agreements = Agreements()
    agreed = []
    for image in by_annotator(labels):
        named = {name: drawn for name, drawn in image.labels.items() if name}
        boxes = agreements.add(named)
        found = Labels(np.array([each.box for each in boxes]).reshape(-1, 4), [each.class_name for each in boxes])
        agreed.append(Image(image.image_id, found, None, image.width, image.height, image.file_name))
    result = agreements.result()
    if consensus and not result.images:
        raise fault(f"--consensus {consensus}", f"{labels.path} has no image with several annotators; leave it out")
    if consensus:
        write_coco(agreed, consensus, labels.categories)
    return result if result.images else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """An image as one annotator sees it, and which of the whole image's labels are theirs; None for all."""

    image: Image
    rows: Sequence[int] | None = None

    def restored(self, finding: Finding) -> Finding:
        """The finding with its label's row in the whole image."""
        if self.rows is None or finding.label is None:
            return finding
        return dataclasses.replace(finding, label=self.rows[finding.label])


def _by_annotator(image: Image) -> Iterator[_Part]:
    """Audits what each annotator drew apart: else every object would be a duplicate."""
    labels = image.labels
    annotators = dict.fromkeys(labels.annotators)
    if len(annotators) < 2:
        yield _Part(image)
        return
    for name in annotators:
        rows = [row for row, each in enumerate(labels.annotators) if each == name]
        theirs = Labels(
            labels.boxes[rows],
            [labels.classes[row] for row in rows],
            [labels.ids[row] for row in rows],
            labels.crowd[rows],
            labels.difficult[rows],
            [name] * len(rows),
        )
        yield _Part(dataclasses.replace(image, labels=theirs), rows)


def _whole(summary: Summary, images: Sequence[Image]) -> Summary:
    """The summary with each image counted once, however many annotators it has."""
    worst: Counter[Id] = Counter()
    for image_id, score in summary.worst_images:
        worst[image_id] += score  # type: ignore[assignment]
    return dataclasses.replace(
        summary,
        images=len(images),
        predictions=sum(len(image.predictions or ()) for image in images),
        worst_images=tuple(worst.most_common()),
    )


def _missing(pictures: Pictures | None) -> Iterator[str]:
    if pictures and pictures.missing:
        names = list(pictures.missing)
        yield str(Mismatch("pictures are not in the folder or cannot be read", len(names), tuple(names[:EXAMPLES])))


def _tell(
    summary: Summary,
    images: Mapping[Id, Image],
    agreement: Agreement | None,
    problems: Sequence[Problem],
    notes: Sequence[str],
    *,
    quiet: bool,
) -> None:
    if quiet:
        if problems or notes:
            err.print(f"{len(problems)} problems and {len(notes)} notes; run without --quiet to see them")
        out.print(overview.line(summary))
        return
    overview.show_problems(problems, err)
    for note in notes:
        err.print(f"note: {note}")
    console = out if out.is_terminal else Console(markup=False, highlight=False, width=120)
    overview.show(summary, images, console)
    if agreement:
        overview.show_agreement(agreement, console)
    out.print(overview.line(summary))


def _judge(findings: Sequence[Finding], most: int | None, least_score: float | None) -> None:
    if most is None and least_score is None:
        return
    counted = sum(finding.score >= (least_score or 0) for finding in findings)
    if counted > (most or 0):
        sure = f" with a score of {least_score:g} or more" if least_score else ""
        print(f"boxloss: {counted} findings{sure}; at most {most or 0} may be", file=sys.stderr)
        raise typer.Exit(EXIT_FOUND)
