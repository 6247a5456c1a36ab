"""Hypothesis strategies of calls, from the contract's descriptors and the losses' own ranges."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from boxloss.contract.wire import loss_to_message
from boxloss.errors import InvalidInputError
from boxloss.losses import CATALOGUE, Loss
from boxloss.losses.loss import PenaltyLoss
from boxloss.losses.modifiers import Modifier
from boxloss.losses.parameters import Choice, Integer, Number, Switch
from boxloss.v1 import array_pb2, audit_service_pb2, loss_service_pb2
from tests.fuzz.target import AUDIT_SERVICE, LOSS_SERVICE
from tests.fuzz.wire import FIXED32, FIXED64, LENGTH, VARINT, Field, varint

Call: TypeAlias = tuple[str, list[bytes]]
"""A method's path and the messages that it is called with; one, unless it takes a stream."""

METHODS: dict[str, type[Message]] = {
    f"{LOSS_SERVICE}/Evaluate": loss_service_pb2.EvaluateRequest,
    f"{LOSS_SERVICE}/EvaluateStream": loss_service_pb2.EvaluateStreamRequest,
    f"{LOSS_SERVICE}/PairwiseIou": loss_service_pb2.PairwiseIouRequest,
    f"{LOSS_SERVICE}/ListLosses": loss_service_pb2.ListLossesRequest,
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest,
    f"{AUDIT_SERVICE}/Audit": audit_service_pb2.AuditRequest,
}
"""What each method takes."""

STREAMS = {method for method in METHODS if method.endswith(("EvaluateStream", "ServerReflectionInfo", "Audit"))}

NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-300, 5e-324, 1e15, 1.1e15, 1e38, 1e150, 1e200, 1.7e308]
NUMBERS += [-number for number in NUMBERS] + [math.nan, math.inf, -math.inf]
"""Numbers at the edges of what is allowed, and of what a type holds."""

_INTEGERS = [0, 1, 2, 3, 7, 63, 64, 99, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
_COLUMNS = {0: 4, 1: 4, 2: 4, 3: 4, 4: 5, 5: 5, 6: 8}
_DTYPES = {0: "<f4", 1: "<f4", 2: "<f8", 3: "<f2"}
_DEPTH = 6


def calls() -> st.SearchStrategy[Call]:
    """Calls of every method: valid ones, nearly valid ones, and any fields that the contract has."""
    return st.one_of([_calls_of(method, messages_of(method)) for method in METHODS] + [streams_of_any(), audits()])


def streams_of_any() -> st.SearchStrategy[Call]:
    """Evaluation streams that are mostly valid."""
    message = evaluations().map(lambda request: Field(1, LENGTH, request.SerializeToString()).encoded())
    return st.tuples(st.just(f"{LOSS_SERVICE}/EvaluateStream"), st.lists(message, max_size=6))


@st.composite
def audits(draw: st.DrawFn) -> Call:
    """Audits that are mostly valid."""
    rules = audit_service_pb2.AuditRules(
        matching=draw(st.sampled_from([0, 1, 2])),  # type: ignore[arg-type]
        min_iou=draw(st.sampled_from([0.1, 0.5, 1.0])),
        min_score=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )
    messages = [audit_service_pb2.AuditRequest(rules=rules).SerializeToString()]
    asked = [audit_service_pb2.AuditRequest(image=draw(images(number))) for number in range(draw(st.integers(0, 5)))]
    messages += [each.SerializeToString() for each in asked]
    if draw(st.booleans()):
        messages.insert(draw(st.integers(0, len(messages))), draw(messages_of(f"{AUDIT_SERVICE}/Audit")))
    return f"{AUDIT_SERVICE}/Audit", messages


@st.composite
def images(draw: st.DrawFn, number: int) -> audit_service_pb2.AuditImage:
    """Images whose parts fit, with boxes that are valid or nearly so."""
    image = audit_service_pb2.AuditImage(class_names=["cat", "dog"])
    image.id.number = number
    coordinates = st.one_of(st.integers(0, 20).map(float), st.sampled_from(NUMBERS))
    for part in (image.labels, image.predictions) if draw(st.booleans()) else (image.labels,):
        count = draw(st.integers(0, 6))
        part.boxes.values.extend(draw(st.lists(coordinates, min_size=4 * count, max_size=4 * count)))
        part.classes.extend(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
        if isinstance(part, audit_service_pb2.AuditPredictions):
            part.scores.values.extend(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
        else:
            part.crowd.extend(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    if draw(st.booleans()):
        image.size.width, image.size.height = draw(coordinates), draw(coordinates)
    return image


def messages_of(method: str) -> st.SearchStrategy[bytes]:
    """Messages for a method."""
    kind = METHODS[method]
    wild = any_message(kind.DESCRIPTOR)
    if method.endswith("Evaluate"):
        return _altered(evaluations(), wild)
    if method.endswith("PairwiseIou"):
        return _altered(matrices(), wild)
    return wild


@st.composite
def evaluations(draw: st.DrawFn) -> loss_service_pb2.EvaluateRequest:
    """Requests whose parts fit, with boxes that are valid or nearly so."""
    box_format, dtype = draw(st.sampled_from(sorted(_COLUMNS))), draw(st.sampled_from(sorted(_DTYPES)))
    count = draw(st.sampled_from([0, 1, 2, 3, 7, 65, 200]))
    asked = [draw(losses(box_format > 3)), *draw(st.lists(losses(), max_size=draw(st.integers(0, 1))))]
    request = loss_service_pb2.EvaluateRequest(
        predictions=draw(boxes(box_format, dtype, count)),
        targets=draw(boxes(box_format, dtype, count)),
        losses=[loss_to_message(loss) for loss in asked],
        dtype=dtype,  # type: ignore[arg-type]
        box_format=box_format,  # type: ignore[arg-type]
        reduction=draw(st.integers(0, 3)),  # type: ignore[arg-type]
        invalid_boxes=draw(st.integers(0, 2)),  # type: ignore[arg-type]
    )
    for switch in ("prediction_gradients", "target_gradients", "iou", "similarities"):
        setattr(request, switch, draw(st.integers(0, 3)) == 0)
    needed = {need for loss in asked for need in loss.needed}
    if draw(st.booleans()):
        request.weights.data = draw(_numbers(count, 0, 10)).astype(_DTYPES[dtype]).tobytes()
    if "image_size" in needed or draw(st.integers(0, 3)) == 0:
        request.image_size.width, request.image_size.height = draw(_near(1, 1000)), draw(_near(1, 1000))
    if "running_mean" in needed or draw(st.integers(0, 3)) == 0:
        request.running_mean = draw(_near(0.01, 1))
    if draw(st.integers(0, 5)) == 0:
        request.crowd.extend([True, False][row % 2] for row in range(count))
    return request


@st.composite
def matrices(draw: st.DrawFn) -> loss_service_pb2.PairwiseIouRequest:
    """Requests for matrices."""
    box_format, dtype = draw(st.sampled_from(sorted(_COLUMNS))), draw(st.sampled_from(sorted(_DTYPES)))
    counts = draw(st.tuples(*[st.sampled_from([0, 1, 3, 17, 40])] * 2))
    request = loss_service_pb2.PairwiseIouRequest(
        a=draw(boxes(box_format, dtype, counts[0])),
        b=draw(boxes(box_format, dtype, counts[1])),
        dtype=dtype,  # type: ignore[arg-type]
        box_format=box_format,  # type: ignore[arg-type]
        invalid_boxes=draw(st.integers(0, 2)),  # type: ignore[arg-type]
    )
    metric = draw(st.none() | losses(box_format > 3))
    if metric is None:
        request.metric = draw(st.integers(0, 5))  # type: ignore[assignment]
    else:
        request.similarity.CopyFrom(loss_to_message(metric))
    if draw(st.booleans()):
        request.image_size.width, request.image_size.height = draw(_near(1, 1000)), draw(_near(1, 1000))
    if draw(st.integers(0, 5)) == 0:
        request.crowd.extend([True, False][row % 2] for row in range(counts[1]))
    return request


@st.composite
def boxes(draw: st.DrawFn, box_format: int, dtype: int, count: int) -> array_pb2.Array:
    """Boxes of a format, most of which are valid: all numbers come of one seed, so that many are cheap to draw."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows = _boxes(rng, box_format, count)
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 3]))):
        if rows.size:
            rows.flat[rng.integers(rows.size)] = draw(st.sampled_from(NUMBERS))
    if draw(st.integers(0, 4)) == 0:
        return array_pb2.Array(values=rows.ravel().tolist())
    with np.errstate(over="ignore"):
        return array_pb2.Array(data=rows.astype(_DTYPES[dtype]).tobytes())


@cache
def losses(oriented: bool | None = None, modifiable: bool = False, depth: int = _DEPTH) -> st.SearchStrategy[Loss]:
    """Losses with parameters within their ranges, modifiers over modifiers among them.

    Args:
        oriented: whether they are defined for oriented boxes, or for axis-aligned ones; None where it does not matter.
        modifiable: whether modifiers act on them.
        depth: most modifiers over each other.
    """
    kinds = [kind for kind in CATALOGUE.values() if depth or not issubclass(kind, Modifier)]
    chosen = st.one_of([_loss(kind, depth) for kind in kinds if not modifiable or issubclass(kind, PenaltyLoss)])
    return chosen.filter(lambda loss: _suits(loss, oriented) and (loss.modifiable or not modifiable))


def _suits(loss: Loss | None, oriented: bool | None) -> bool:
    return loss is not None and (oriented is None or (loss.oriented if oriented else loss.axis_aligned))


@st.composite
def _loss(draw: st.DrawFn, kind: type[Loss], depth: int) -> Any:
    values: dict[str, Any] = {}
    for each in fields(kind):
        match each.metadata["kind"]:
            case Number() as number:
                if draw(st.booleans()):
                    values[each.name] = draw(_within(number))
            case Integer() as integer:
                values[each.name] = draw(st.integers(integer.minimum, integer.maximum))
            case Switch():
                values[each.name] = draw(st.booleans())
            case Choice() as choice:
                values[each.name] = draw(st.sampled_from(choice.choices))
            case _:
                values[each.name] = draw(losses(None, True, depth - 1))
    try:
        return kind(**values)
    except InvalidInputError:  # Its parameters do not go together.
        return None


def _within(number: Number) -> st.SearchStrategy[float]:
    low = number.minimum if number.minimum is not None else (number.above or 0.0) + 1e-6
    high = number.maximum if number.maximum is not None else (number.below if number.below is not None else 1e6)
    return st.sampled_from([low, (low + high) / 2, math.sqrt(max(low, 1e-6) * high), high])


@cache
def any_message(kind: Descriptor) -> st.SearchStrategy[bytes]:
    """Any fields that a message has and some that it has not, in any order, as often as it comes."""
    known = [_field(field) for field in kind.fields]
    return st.lists(st.one_of([*known, _foreign()]), max_size=5).map(b"".join)


def _field(field: FieldDescriptor) -> st.SearchStrategy[bytes]:
    """A field with a value of its type, and now and then of another."""
    kind, contents = _contents(field)
    right = contents.map(lambda content: Field(field.number, kind, content).encoded())
    return st.one_of([right] * 7 + [_foreign(field.number)])


def _contents(field: FieldDescriptor) -> tuple[int, st.SearchStrategy[bytes]]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return LENGTH, st.deferred(lambda: any_message(field.message_type))
        case FieldDescriptor.CPPTYPE_STRING:
            return LENGTH, _packed() if field.type == FieldDescriptor.TYPE_BYTES else st.text().map(str.encode)
        case FieldDescriptor.CPPTYPE_DOUBLE if field.is_repeated:
            return LENGTH, _packed()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return FIXED64, st.sampled_from(NUMBERS).map(lambda number: np.array(number, "<f8").tobytes())
        case _:
            return VARINT, st.sampled_from(_INTEGERS).map(varint)


def _foreign(number: int = 0) -> st.SearchStrategy[bytes]:
    """A field of any number, or of this, of any wire type, well-formed or not."""
    numbers = st.just(number) if number else st.sampled_from([0, 16, 77, 1000, 2**29 - 1, 2**29])
    formed = st.one_of(
        st.tuples(numbers, st.just(VARINT), st.sampled_from(_INTEGERS).map(varint)),
        st.tuples(numbers, st.just(FIXED64), st.binary(min_size=8, max_size=8)),
        st.tuples(numbers, st.just(FIXED32), st.binary(min_size=4, max_size=4)),
        st.tuples(numbers, st.just(LENGTH), st.binary(max_size=60)),
        st.tuples(numbers, st.integers(3, 7), st.binary(max_size=4)),
    )
    long = st.tuples(numbers, st.integers(0, 5), st.integers(1, 10)).map(
        lambda drawn: varint(drawn[0] << 3 | drawn[1], drawn[2])
    )
    return formed.map(lambda drawn: Field(*drawn).encoded()) | long


def _altered(requests: st.SearchStrategy[Any], wild: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid messages as they are, with something before or behind, or cut."""
    valid = requests.map(lambda request: request.SerializeToString())
    extended = st.tuples(st.binary(max_size=3) | wild, valid, wild).map(b"".join)
    cut = st.tuples(valid, st.integers(0, 400)).map(lambda drawn: drawn[0][: -drawn[1]])
    return st.one_of(valid, valid, valid, extended, cut, wild)


def _calls_of(method: str, messages: st.SearchStrategy[bytes]) -> st.SearchStrategy[Call]:
    several = st.lists(messages, max_size=4) if method in STREAMS else messages.map(lambda message: [message])
    return st.tuples(st.just(method), several)


def _packed() -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(0, 2**16), st.sampled_from([0, 1, 4, 5, 8, 16, 40, 41])).map(_random_elements)


def _random_elements(drawn: tuple[int, int]) -> bytes:
    rng = np.random.default_rng(drawn[0])
    dtype = ["<f4", "<f8"][drawn[0] % 2]
    with np.errstate(over="ignore"):
        return rng.choice([0.0, 1.0, 2.0, 3.0, *NUMBERS], drawn[1]).astype(dtype).tobytes()


def _numbers(count: int, low: float, high: float) -> st.SearchStrategy[Any]:
    return st.integers(0, 2**16).map(lambda seed: np.random.default_rng(seed).uniform(low, high, count))


def _near(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high) | st.floats(low, high) | st.sampled_from(NUMBERS)


def _boxes(rng: np.random.Generator, box_format: int, count: int) -> Any:
    center, size = rng.uniform(0, 100, (count, 2)), rng.uniform(1, 60, (count, 2))
    near, far = center - size / 2, center + size / 2
    match box_format:
        case 2:
            return np.hstack([near, size])
        case 3:
            return np.hstack([center, size])
        case 4:
            return np.hstack([center, size, rng.uniform(-180, 180, (count, 1))])
        case 5:
            return np.hstack([center, size, rng.uniform(-4, 4, (count, 1))])
        case 6:
            return np.hstack([near, far[:, :1], near[:, 1:], far, near[:, :1], far[:, 1:]])
    return np.hstack([near, far])
