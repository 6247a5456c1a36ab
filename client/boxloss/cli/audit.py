"""The commands of the label audit. The packages they need come with the extra: pip install 'boxloss[audit]'."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import rich.progress
import typer
from rich.console import Console

from boxloss.audit.agreement import Agreement, Agreements
from boxloss.audit.annotations import Source
from boxloss.audit.audit import Audit
from boxloss.audit.audit import audit as audit_here
from boxloss.audit.corrections import corrected
from boxloss.audit.exports import write_coco, write_cvat, write_labelstudio
from boxloss.audit.exports.findings import row_of
from boxloss.audit.finding import Finding
from boxloss.audit.image import Id, Image, Labels
from boxloss.audit.join import EXAMPLES, Joined, Mismatch, by_annotator, join
from boxloss.audit.matching import Matching
from boxloss.audit.problems import Problem
from boxloss.audit.rules import Rules
from boxloss.audit.summary import Summary
from boxloss.channel import name_of
from boxloss.cli import overview
from boxloss.cli.credentials import ADDRESS, TLS, TLS_CA, TLS_CERTIFICATE, TLS_KEY, TOKEN_FILE, Credentials
from boxloss.cli.faults import fault
from boxloss.cli.findings import read_findings, write_json, write_table
from boxloss.errors import InvalidInputError

if TYPE_CHECKING:  # Only who audits needs the packages of the extra.
    from boxloss.audit.pictures import Pictures

EXIT_FOUND = 4
"""Exit code of an audit that found more than it may."""

_PROBLEMS = 20
"""Shown one by one."""
_WRONG = 3
"""Findings that do not fit their labels, named in a message."""
_APART = 0.01
"""Pixels, or share of a box's side, by which a label may be off the box of its finding: formats round."""

T = TypeVar("T")
Form = Literal["coco", "cvat", "labelstudio"]

_out = Console(markup=False, highlight=False, soft_wrap=True)
_err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)

_FORMATS = "coco, yolo, voc, cvat, labelstudio, openimages, mot, csv or txt"
_Labels = Annotated[Path, typer.Option(metavar="PATH", help="A file or folder: COCO, YOLO, VOC, CVAT and others.")]
_LabelsFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help=f"{_FORMATS}.", show_default="detected")]
_PredictionsFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help="Likewise.", show_default="detected")]
_LabelsNames = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names of the classes: a name a line, data.yaml, or CSV.")
]
_PredictionsNames = Annotated[Path | None, typer.Option(metavar="FILE", help="Likewise, where the model has its own.")]
_Layout = Literal["xyxy", "xywh", "cxcywh"]
_LabelsLayout = Annotated[_Layout | None, typer.Option(help="Of the boxes of txt files.", show_default="xyxy")]
_PredictionsLayout = Annotated[_Layout | None, typer.Option(help="Likewise.", show_default="xyxy")]
_LabelsRelative = Annotated[
    bool, typer.Option("--labels-relative", help="Boxes of txt and csv files are parts of the image, 0 to 1.")
]
_PredictionsRelative = Annotated[bool, typer.Option("--predictions-relative", help="Likewise.")]
_Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", exists=True, file_okay=False, help="With the pictures; subfolders count."),
]


def audit(
    labels: _Labels,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Likewise. Without it, geometry and duplicates alone are audited."),
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
    images: _Images = None,
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
    labels_format: _LabelsFormat = None,
    predictions_format: _PredictionsFormat = None,
    labels_names: _LabelsNames = None,
    predictions_names: _PredictionsNames = None,
    labels_layout: _LabelsLayout = None,
    predictions_layout: _PredictionsLayout = None,
    labels_relative: _LabelsRelative = False,
    predictions_relative: _PredictionsRelative = False,
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
        _check_file(name, path, endings)
    rules = Rules(matching, min_iou, min_score)
    problems: list[Problem] = []
    pictures = _pictures(images)
    credentials = Credentials(tls, tls_ca, tls_certificate, tls_key, token_file)
    with _engine(engine, ray_address, address, timeout, credentials) as audited_by, _Steps(quiet) as steps:
        sources = _Sources(problems, pictures, steps)
        known = sources.read(
            labels, "labels", labels_format, names=labels_names, layout=labels_layout, relative=labels_relative
        )
        predicted = predictions and sources.read(
            predictions,
            "predictions",
            predictions_format,
            names=predictions_names,
            layout=predictions_layout,
            relative=predictions_relative,
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
            from boxloss.audit.report import Report, render

            page = render(
                Report(
                    str(labels),
                    str(predictions) if predictions else None,
                    rules,
                    summary,
                    findings[:worst],
                    by_id,
                    problems,
                    joined.mismatches,
                    agreement,
                    pictures,
                ),
                lambda work, description: steps.track(work, description, len(work)),
            )
            report.write_text(page, "utf-8", "replace")
        notes = [*map(str, joined.mismatches), *_missing(pictures)]
        if output:
            rows = [row_of(finding, by_id[finding.image_id]) for finding in findings]
            if output.suffix.lower() == ".json":
                write_json(output, rows, summary, problems, notes)
            else:
                write_table(output, rows)
    _tell(summary, by_id, agreement, problems, notes, quiet=quiet)
    for path in (report, output, consensus) if not quiet else ():
        if path:
            _out.print(f"written: {path}")
    _judge(findings, fail_over, fail_score)


def correct(
    labels: _Labels,
    accepted: Annotated[
        Path,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A report's download, or --output's."),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, writable=True, help="The corrected labels: .json, or .xml.")
    ],
    form: Annotated[
        Form | None,
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
    images: _Images = None,
    labels_format: _LabelsFormat = None,
    predictions_format: _PredictionsFormat = None,
    labels_names: _LabelsNames = None,
    labels_layout: _LabelsLayout = None,
    predictions_layout: _PredictionsLayout = None,
    labels_relative: _LabelsRelative = False,
    predictions_relative: _PredictionsRelative = False,
) -> None:
    """Corrects labels as accepted findings say, and writes them for COCO, CVAT or Label Studio.

    The labels are those that were audited, unchanged: a finding whose label is not there any more is refused, and
    nothing is written.
    """
    form = form or ("cvat" if output.suffix.lower() == ".xml" else "coco")
    _check_file("--output", output, (".xml",) if form == "cvat" else (".json",))
    chosen: dict[Id, list[Finding]] = defaultdict(list)
    for finding in read_findings(accepted):
        if finding.score >= min_score:
            chosen[finding.image_id].append(finding)
    problems: list[Problem] = []
    with _Steps(quiet=False) as steps:
        sources = _Sources(problems, _pictures(images), steps)
        known = sources.read(
            labels, "labels", labels_format, names=labels_names, layout=labels_layout, relative=labels_relative
        )
        predicted = predictions and sources.read(
            predictions,
            "predictions",
            predictions_format,
            layout=predictions_layout,
            relative=predictions_relative,
        )
        joined = join(known, predicted or None)
        _check_accepted(chosen, {image.image_id: image for image in joined.images}, accepted)
        results = [corrected(image, chosen.get(image.image_id, ())) for image in joined.images]
        left_out = 0
        match form:
            case "coco":
                write_coco(results, output, known.categories)
            case "cvat":
                write_cvat(results, output)
            case "labelstudio":
                left_out = write_labelstudio(results, chosen, output)
    _show_problems(problems)
    for mismatch in joined.mismatches:
        _err.print(f"note: {mismatch}")
    if lost := sum(image.skipped for image in known.images):
        _err.print(f"{lost} boxes could not be read and are not in {output}")
    if left_out:
        _err.print(f"{left_out} images have no size and are not in {output}; give --images")
    changes = Counter(str(finding.kind) for found in chosen.values() for finding in found)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(changes.items())) or "none"
    _out.print(f"{sum(changes.values())} findings accepted ({counts}); written: {output}")


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


class _Steps:
    """What is being done, on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._progress = rich.progress.Progress(console=_err, transient=True, disable=quiet or not _err.is_terminal)

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def track(self, work: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Goes over work as it is described."""
        task = self._progress.add_task(description, total=total)
        for each in work:
            yield each
            self._progress.advance(task)
        self._progress.remove_task(task)


class _Sources:
    """Reads files, and stops where one holds nothing that can be used."""

    def __init__(self, problems: list[Problem], pictures: Pictures | None, steps: _Steps) -> None:
        self._problems, self._pictures, self._steps = problems, pictures, steps

    def read(self, path: Path, role: Literal["labels", "predictions"], form: str | None, **options: Any) -> Source:
        """Reads all images; `options` are those of `boxloss.audit.formats.read`.

        Raises:
            InvalidInputError: there are none, or an option is wrong.
        """
        from boxloss.audit import formats
        from boxloss.audit.pictures import sized

        names = {name: f"--{role}-{name}" for name in ("format", "names", "layout", "relative")}
        before = len(self._problems)
        given = {name: value for name, value in options.items() if value not in (None, False)}
        try:
            source = formats.read(path, role, self._problems.append, format=form, **given)  # type: ignore[arg-type]
        except InvalidInputError as error:
            raise error.renamed(names) from None
        if self._pictures:
            source = sized(source, self._pictures)
        found = list(self._steps.track(source, f"reading {path}"))
        if not found and (problem := next((each for each in self._problems[before:] if each.skipped), None)):
            raise fault(path, f"holds nothing that can be read: {problem}")
        if not found and role == "labels":
            raise fault(path, "holds no images; give a file or folder of labels")
        return dataclasses.replace(source, images=found)


def _pictures(folder: Path | None) -> Pictures | None:
    if folder is None:
        return None
    from boxloss.audit.pictures import Pictures

    return Pictures(folder)


def _check_file(name: str, path: Path | None, endings: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise fault(f"{name} {path}", f"ends in {path.suffix!r}; give a {' or '.join(endings)} file")
    if not path.parent.is_dir():
        raise fault(f"{name} {path}", f"there is no folder {path.parent}")


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


def _check_accepted(chosen: Mapping[Id, Sequence[Finding]], images: Mapping[Id, Image], path: Path) -> None:
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
            _err.print(f"{len(problems)} problems and {len(notes)} notes; run without --quiet to see them")
        _out.print(overview.line(summary))
        return
    _show_problems(problems)
    for note in notes:
        _err.print(f"note: {note}")
    console = _out if _out.is_terminal else Console(markup=False, highlight=False, width=120)
    overview.show(summary, images, console)
    if agreement:
        overview.show_agreement(agreement, console)
    _out.print(overview.line(summary))


def _show_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:_PROBLEMS]:
        _err.print(f"{problem}")
    if len(problems) > _PROBLEMS:
        _err.print(f"and {len(problems) - _PROBLEMS} more problems; audit --output FILE.json lists them all")
    skipped = Counter(problem.skipped for problem in problems if problem.skipped)
    if skipped:
        _err.print("skipped: " + ", ".join(f"{count} {what}" for what, count in sorted(skipped.items())))


def _judge(findings: Sequence[Finding], most: int | None, least_score: float | None) -> None:
    if most is None and least_score is None:
        return
    counted = sum(finding.score >= (least_score or 0) for finding in findings)
    if counted > (most or 0):
        sure = f" with a score of {least_score:g} or more" if least_score else ""
        print(f"boxloss: {counted} findings{sure}; at most {most or 0} may be", file=sys.stderr)
        raise typer.Exit(EXIT_FOUND)
