"""Results to response messages, as parts to be joined."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from boxloss.contract.bulk import Part, array_field, elements_of, field
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateResponse, EvaluateStreamResponse, LossResult, PairwiseIouResponse
from boxloss_server.batching import Outcome
from boxloss_server.engine import Grid, Score, Scores
from boxloss_server.service.decode import Asked

_DTYPES = {np.dtype(np.float32): array_pb2.DTYPE_FLOAT32, np.dtype(np.float64): array_pb2.DTYPE_FLOAT64}

_ROWS = 2**16


def encode_evaluation(asked: Asked, outcome: Outcome[Scores]) -> list[Part]:
    """Writes the answer to an EvaluateRequest."""
    write = _plain_field if asked.plain else _packed_field
    scores = outcome.result
    response = EvaluateResponse(dtype=_DTYPES[scores.iou.dtype])
    _write_rows(response.masked_rows, asked.pairs.masked)
    _write_execution(response.execution, outcome)
    parts: list[Part] = [response.SerializeToString()]
    for score in scores.scores:
        parts += field(EvaluateResponse.RESULTS_FIELD_NUMBER, *_result(score, write))
    if asked.iou:
        parts += write(EvaluateResponse.IOU_FIELD_NUMBER, scores.iou)
    return parts


def encode_in_stream(response: list[Part]) -> list[Part]:
    """Writes an answer as a message of a stream."""
    return field(EvaluateStreamResponse.RESPONSE_FIELD_NUMBER, *response)


def encode_matrix(request: loss_service_pb2.PairwiseIouRequest, grid: Grid, outcome: Outcome[Any]) -> list[Part]:
    """Writes the answer to a PairwiseIouRequest, in the form that `a` came in."""
    response = PairwiseIouResponse(dtype=_DTYPES[outcome.result.dtype])
    _write_rows(response.masked_rows, grid.masked_rows)
    _write_rows(response.masked_columns, grid.masked_columns)
    _write_execution(response.execution, outcome)
    write = _plain_field if request.a.values else _packed_field
    return [response.SerializeToString(), *write(PairwiseIouResponse.MATRIX_FIELD_NUMBER, outcome.result)]


def _result(score: Score, write: Any) -> list[Part]:
    parts: list[Part] = write(LossResult.LOSS_FIELD_NUMBER, score.loss)
    if score.prediction_gradient is not None:
        parts += write(LossResult.PREDICTION_GRADIENT_FIELD_NUMBER, score.prediction_gradient)
    if score.target_gradient is not None:
        parts += write(LossResult.TARGET_GRADIENT_FIELD_NUMBER, score.target_gradient)
    if score.running_mean is not None:
        parts.append(LossResult(running_mean=score.running_mean).SerializeToString())
    return parts


def _packed_field(number: int, array: NDArray[np.floating]) -> list[Part]:
    return array_field(number, [elements_of(array)])


def _plain_field(number: int, array: NDArray[np.floating]) -> list[Part]:
    # On the wire, plain numbers are what the packed form of DTYPE_FLOAT64 is, in a field of another number.
    if not array.size:
        return field(number)
    return field(number, *field(array_pb2.Array.VALUES_FIELD_NUMBER, elements_of(array.astype(np.float64))))


def _write_rows(field: Any, rows: NDArray[np.int64]) -> None:
    """Writes rows a part at a time: while it takes numbers, protobuf lets no other thread run."""
    for start in range(0, len(rows), _ROWS):
        field.extend(rows[start : start + _ROWS].tolist())


def _write_execution(message: loss_service_pb2.Execution, outcome: Outcome[Any]) -> None:
    _write_duration(message.queue_time, outcome.queue_time)
    _write_duration(message.compute_time, outcome.copy_time + outcome.compute_time)
    message.batch_request_count = outcome.batch_requests
    message.batch_pair_count = outcome.batch_pairs


def _write_duration(message: Duration, seconds: float) -> None:
    message.seconds = int(seconds)
    message.nanos = int((seconds - message.seconds) * 1e9)
