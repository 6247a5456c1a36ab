"""Images, findings and summaries to and from messages of the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxloss.audit.finding import Corners, Finding, Kind, corners
from boxloss.audit.image import Flags, Id, Image, Labels, Predictions
from boxloss.audit.matching import Matching
from boxloss.audit.rules import ImageAudit, Match, Rules
from boxloss.audit.summary import ClassSummary, Summary
from boxloss.contract.arrays import Array, packed
from boxloss.contract.wire import enum_choices, refuse_unknown_fields
from boxloss.errors import InvalidInputError, UnsupportedError, Violation
from boxloss.v1 import array_pb2, audit_service_pb2

_MATCHINGS: dict[Any, int] = enum_choices(audit_service_pb2.Matching.DESCRIPTOR)
_KINDS: dict[Any, Any] = {
    Kind(word): number for word, number in enum_choices(audit_service_pb2.FindingKind.DESCRIPTOR).items()
}
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
_MOST_WORST = 10_000
_LARGEST_IMAGE = 1e15


def rules_to_message(rules: Rules, worst: int) -> audit_service_pb2.AuditRules:
    """Writes what an audit goes by, and how many of the worst images and findings are to be named."""
    return audit_service_pb2.AuditRules(
        matching=_MATCHINGS[rules.matching],  # type: ignore[arg-type]
        min_iou=rules.min_iou,
        min_score=rules.min_score,
        worst_count=worst,
    )


def rules_from_message(message: audit_service_pb2.AuditRules) -> tuple[Rules, int]:
    """Reads what an audit goes by, and how many of the worst are to be named.

    Raises:
        InvalidInputError: a number is out of its range.
        UnsupportedError: a field or value is newer than this version.
    """
    refuse_unknown_fields(message)
    worst = message.worst_count if message.HasField("worst_count") else 100
    if not 0 <= worst <= _MOST_WORST:
        raise InvalidInputError([Violation("worst_count", f"is {worst}; ask for 0 to {_MOST_WORST}")])
    words: dict[int, Matching] = {number: word for word, number in _MATCHINGS.items()} | {0: "greedy"}
    if message.matching not in words:
        raise UnsupportedError([Violation("matching", f"{message.matching} is not known to this server; upgrade it")])
    rules = Rules(
        words[message.matching],
        message.min_iou if message.HasField("min_iou") else Rules.min_iou,
        message.min_score if message.HasField("min_score") else Rules.min_score,
    )
    return rules, worst


def image_to_message(image: Image) -> audit_service_pb2.AuditImage:
    """Writes an image."""
    labels, predictions = image.labels, image.predictions
    names = sorted({*labels.classes, *(predictions.classes if predictions else ())})
    numbers = {name: number for number, name in enumerate(names)}
    message = audit_service_pb2.AuditImage(id=_id_to_message(image.image_id), class_names=names)
    message.labels.boxes.data = packed(labels.boxes)
    message.labels.classes.extend(numbers[name] for name in labels.classes)
    if any(each is not None for each in labels.ids):
        message.labels.ids.extend(map(_id_to_message, labels.ids))
    if labels.crowd.any():
        message.labels.crowd.extend(labels.crowd.tolist())
    if labels.difficult.any():
        message.labels.difficult.extend(labels.difficult.tolist())
    if predictions is not None:
        message.predictions.boxes.data = packed(predictions.boxes)
        message.predictions.classes.extend(numbers[name] for name in predictions.classes)
        message.predictions.scores.data = packed(predictions.scores)
    if image.width and image.height:
        message.size.width, message.size.height = image.width, image.height
    return message


def image_from_message(message: audit_service_pb2.AuditImage) -> Image:
    """Reads an image.

    Raises:
        InvalidInputError: a field is missing, has the wrong size or holds what it must not.
        UnsupportedError: a field is newer than this version.
    """
    for part in (message, message.labels, message.predictions, message.size):
        refuse_unknown_fields(part)
    image_id = _id_from_message(message.id)
    if image_id is None:
        raise InvalidInputError([Violation("id", "is not set; give each image a number or a text")])
    width = height = None
    if message.HasField("size"):
        width, height = message.size.width, message.size.height
        if not (0 < width <= _LARGEST_IMAGE and 0 < height <= _LARGEST_IMAGE):
            raise InvalidInputError([Violation("size", f"is {width:g} x {height:g}; give width and height above 0")])
    sent = message.labels
    labels = Labels(
        _boxes(sent.boxes, "labels.boxes"),
        _names(sent.classes, message.class_names, "labels.classes"),
        [_id_from_message(each) for each in sent.ids],
        _flags(sent.crowd),
        _flags(sent.difficult),
    )
    predictions = None
    if message.HasField("predictions"):
        found = message.predictions
        predictions = Predictions(
            _boxes(found.boxes, "predictions.boxes"),
            _names(found.classes, message.class_names, "predictions.classes"),
            _numbers(found.scores, "predictions.scores"),
        )
    return Image(image_id, labels, predictions, width, height)


def audit_to_message(audited: ImageAudit) -> audit_service_pb2.ImageFindings:
    """Writes what was found in an image."""
    return audit_service_pb2.ImageFindings(
        image_id=_id_to_message(audited.image_id),
        findings=map(_finding_to_message, audited.findings),
        matches=[
            audit_service_pb2.Match(label_class=match.label, prediction_class=match.prediction, iou=match.iou)
            for match in audited.matches
        ],
    )


def audit_from_message(message: audit_service_pb2.ImageFindings) -> ImageAudit:
    """Reads what was found in an image."""
    return ImageAudit(
        _needed_id(message.image_id),
        tuple(map(_finding_from_message, message.findings)),
        tuple(
            Match(_given(match, "label_class"), _given(match, "prediction_class"), _given(match, "iou"))
            for match in message.matches
        ),
    )


def summary_to_message(summary: Summary) -> audit_service_pb2.AuditSummary:
    """Writes a summary."""
    return audit_service_pb2.AuditSummary(
        image_count=summary.images,
        label_count=summary.labels,
        prediction_count=summary.predictions,
        findings=_counts_to_message(summary.findings),
        classes=[
            audit_service_pb2.ClassSummary(
                name=name,
                label_count=each.labels,
                matched_count=each.matched,
                mean_iou=each.mean_iou,
                findings=_counts_to_message(each.findings),
            )
            for name, each in summary.classes.items()
        ],
        iou_histogram=summary.iou_histogram.tolist(),
        confusion=[
            audit_service_pb2.Confusion(label_class=label, prediction_class=prediction, count=count)
            for (label, prediction), count in summary.confusion.items()
        ],
        worst_images=[
            audit_service_pb2.WorstImage(image_id=_id_to_message(image_id), score=score)
            for image_id, score in summary.worst_images
        ],
        worst_findings=map(_finding_to_message, summary.worst_findings),
    )


def summary_from_message(message: audit_service_pb2.AuditSummary) -> Summary:
    """Reads a summary."""
    return Summary(
        message.image_count,
        message.label_count,
        message.prediction_count,
        dict.fromkeys(Kind, 0) | _counts_from_message(message.findings),
        {
            each.name: ClassSummary(
                each.label_count, each.matched_count, each.mean_iou, Counter(_counts_from_message(each.findings))
            )
            for each in message.classes
        },
        np.array(message.iou_histogram, np.int64),
        {(_given(each, "label_class"), _given(each, "prediction_class")): each.count for each in message.confusion},
        tuple((_needed_id(each.image_id), each.score) for each in message.worst_images),
        tuple(map(_finding_from_message, message.worst_findings)),
    )


def _finding_to_message(finding: Finding) -> audit_service_pb2.Finding:
    return audit_service_pb2.Finding(
        kind=_KINDS[finding.kind],
        image_id=_id_to_message(finding.image_id),
        score=finding.score,
        message=finding.message,
        box=finding.box,
        class_name=finding.class_name,
        label=finding.label,
        label_id=None if finding.label_id is None else _id_to_message(finding.label_id),
        prediction_index=finding.prediction_index,
        iou=finding.iou,
        proposed_class=finding.proposed_class,
        proposed_box=finding.proposed_box,
    )


def _finding_from_message(message: audit_service_pb2.Finding) -> Finding:
    return Finding(
        _KIND_OF[message.kind],
        _needed_id(message.image_id),
        message.score,
        message.message,
        corners(message.box),
        message.class_name,
        _given(message, "label"),
        _id_from_message(message.label_id),
        _given(message, "prediction_index"),
        _given(message, "iou"),
        _given(message, "proposed_class"),
        _corners_or_none(message.proposed_box),
    )


def _counts_to_message(counts: Mapping[Kind, int]) -> list[audit_service_pb2.FindingCount]:
    return [audit_service_pb2.FindingCount(kind=_KINDS[kind], count=counts[kind]) for kind in Kind if counts.get(kind)]


def _counts_from_message(counts: Sequence[audit_service_pb2.FindingCount]) -> dict[Kind, int]:
    return {_KIND_OF[each.kind]: each.count for each in counts}


def _id_to_message(value: Id | None) -> audit_service_pb2.AuditId:
    if value is None:
        return audit_service_pb2.AuditId()
    if isinstance(value, str):
        return audit_service_pb2.AuditId(text=value)
    return audit_service_pb2.AuditId(number=int(value))


def _id_from_message(message: audit_service_pb2.AuditId) -> Id | None:
    refuse_unknown_fields(message)
    match message.WhichOneof("id"):
        case "number":
            return message.number
        case "text":
            return message.text
        case _:
            return None


def _needed_id(message: audit_service_pb2.AuditId) -> Id:
    value = _id_from_message(message)
    return "" if value is None else value


def _boxes(message: array_pb2.Array, field: str) -> Array:
    numbers = _numbers(message, field)
    if len(numbers) % 4:
        raise InvalidInputError([Violation(field, f"has {len(numbers)} numbers, which is no multiple of 4")])
    return numbers.reshape(-1, 4)


def _numbers(message: array_pb2.Array, field: str) -> Array:
    refuse_unknown_fields(message)
    if message.values:
        return np.array(message.values, np.float64)
    if len(message.data) % 8:
        raise InvalidInputError([Violation(field, f"has {len(message.data)} bytes; send DTYPE_FLOAT64 numbers")])
    return np.frombuffer(message.data, "<f8").astype(np.float64, copy=False)


def _names(numbers: Sequence[int], names: Sequence[str], field: str) -> list[str]:
    if any(not 0 <= number < len(names) for number in numbers):
        raise InvalidInputError(
            [Violation(field, f"names classes beyond the {len(names)} in class_names; count from 0")]
        )
    return [names[number] for number in numbers]


def _flags(values: Sequence[bool]) -> Flags:
    return np.array(values, bool)


def _given(message: Any, field: str) -> Any:
    """The field's value, or None where it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def _corners_or_none(numbers: Sequence[float]) -> Corners | None:
    return corners(numbers) if numbers else None
