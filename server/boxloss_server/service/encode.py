"""Results to response messages."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss_server.batching import Outcome
from boxloss_server.engine import Grid, Pairs, Scores

_DTYPES = {np.dtype(np.float32): array_pb2.DTYPE_FLOAT32, np.dtype(np.float64): array_pb2.DTYPE_FLOAT64}


def encode_evaluation(
    request: loss_service_pb2.EvaluateRequest, pairs: Pairs, outcome: Outcome[Scores]
) -> loss_service_pb2.EvaluateResponse:
    """Writes the answer to an EvaluateRequest, in the form that its predictions came in."""
    plain = bool(request.predictions.values)
    scores = outcome.result
    response = loss_service_pb2.EvaluateResponse(dtype=_DTYPES[scores.iou.dtype])
    if len(pairs.masked):
        response.masked_rows.extend(pairs.masked)
    _write_execution(response.execution, outcome)
    for score in scores.scores:
        result = response.results.add()
        _write(result.loss, score.loss, plain)
        if score.prediction_gradient is not None:
            _write(result.prediction_gradient, score.prediction_gradient, plain)
        if score.target_gradient is not None:
            _write(result.target_gradient, score.target_gradient, plain)
        if score.running_mean is not None:
            result.running_mean = score.running_mean
    if request.iou:
        _write(response.iou, scores.iou, plain)
    return response


def encode_matrix(
    request: loss_service_pb2.PairwiseIouRequest, grid: Grid, outcome: Outcome[Any]
) -> loss_service_pb2.PairwiseIouResponse:
    """Writes the answer to a PairwiseIouRequest, in the form that `a` came in."""
    response = loss_service_pb2.PairwiseIouResponse(
        dtype=_DTYPES[outcome.result.dtype],
        masked_rows=grid.masked_rows,
        masked_columns=grid.masked_columns,
    )
    _write_execution(response.execution, outcome)
    _write(response.matrix, outcome.result, bool(request.a.values))
    return response


def _write(message: array_pb2.Array, array: NDArray[np.floating], plain: bool) -> None:
    message.SetInParent()
    if plain:
        message.values.extend(array.ravel().tolist())
    elif sys.byteorder == "little":
        message.data = array.tobytes()
    else:
        message.data = array.byteswap().tobytes()


def _write_execution(message: loss_service_pb2.Execution, outcome: Outcome[Any]) -> None:
    _write_duration(message.queue_time, outcome.queue_time)
    _write_duration(message.compute_time, outcome.compute_time)
    message.batch_request_count = outcome.batch_requests
    message.batch_pair_count = outcome.batch_pairs


def _write_duration(message: Duration, seconds: float) -> None:
    message.seconds = int(seconds)
    message.nanos = int((seconds - message.seconds) * 1e9)
