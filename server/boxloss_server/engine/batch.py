"""The arrays of a batch: the requests' rows become planes to compute, and planes become the requests' scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np

from boxloss.contract.words import COLUMNS
from boxloss.errors import InvalidInputError
from boxloss.losses import Loss, WIoU
from boxloss_server.engine.formats import unit_box
from boxloss_server.engine.pairs import NO_ROWS, Array, Evaluation, Pairs, Rows, Score, Scores
from boxloss_server.engine.validity import violations


class Batch:
    """The pairs of several requests, one after the other, and what is computed for them.

    Args:
        work: what is computed.
        requests: for whom; at least one.
    """

    def __init__(self, work: Evaluation, requests: Sequence[Pairs]) -> None:
        self._work = work
        self._requests = requests
        self._columns = COLUMNS[work.box_format]
        bounds = list(accumulate((len(request.predictions) for request in requests), initial=0))
        self._slices = [slice(*ends) for ends in pairwise(bounds)]
        self._count = bounds[-1]
        self._predictions = _joined([request.predictions for request in requests])
        self._targets = _joined([request.targets for request in requests])
        self._scales = np.ones(self._count, work.precision)
        masked = [NO_ROWS]
        for request, part in self._parts():
            if request.weights is not None or len(request.masked) or request.reduction == "mean":
                self._scales[part] = _scales(request)
                masked.append(request.masked + part.start)
        self._masked = _joined(masked)
        self._needs = [self._of_pairs(_GIVEN[need]) for need in work.needs]
        self._sides = work.prediction_gradients + work.target_gradients
        self._computed: list[Array] = []

    def __len__(self) -> int:
        return self._count

    @property
    def planes(self) -> int:
        """How many planes `write` fills."""
        return 2 * self._columns + 1 + len(self._needs)

    def write(self, tile: slice, planes: Array) -> None:
        """Writes some pairs into the first places of planes; boxes of zeros into the rest."""
        count, columns = tile.stop - tile.start, self._columns
        planes[:, count:] = 0
        planes = planes[:, :count]
        planes[:columns] = self._predictions[tile].T
        planes[columns : 2 * columns] = self._targets[tile].T
        planes[2 * columns] = self._scales[tile]
        for plane, need in zip(planes[2 * columns + 1 :], self._needs, strict=True):
            plane[:] = need[tile]
        if len(self._masked):
            # What masked rows hold must not reach the computation.
            masked = self._masked[(self._masked >= tile.start) & (self._masked < tile.stop)] - tile.start
            planes[: 2 * columns, masked] = np.array(unit_box(self._work.box_format) * 2)[:, None]

    def take(self, tile: slice, planes: Array) -> None:
        """Takes what was computed for these pairs: the planes of `compute`."""
        count = tile.stop - tile.start
        computed = list(self._split(planes[:, :count]))
        if count == self._count:  # A batch that is a single tile is over in less time than copies take.
            self._computed = computed
            return
        if not self._computed:
            self._computed = [np.empty((self._count, *rows.shape[1:]), rows.dtype) for rows in computed]
        for rows, taken in zip(self._computed, computed, strict=True):
            rows[tile] = taken

    def answers(self) -> list[Scores | InvalidInputError]:
        """Each request's scores, or its error where it has invalid boxes."""
        faults = self._computed[0]
        faulty = bool(faults.any())
        return [
            self._error(request) if faulty and faults[part].any() else self._scores(request, part)
            for request, part in self._parts()
        ]

    def _split(self, planes: Array) -> Iterator[Array]:
        """Rows of faults, of the IoU, and for each loss of its value and of its gradients, as views."""
        yield from planes[:2]
        place = 2
        for _ in self._work.losses:
            yield planes[place]
            place += 1
            for _ in range(self._sides):
                yield planes[place : place + self._columns].T
                place += self._columns

    def _parts(self) -> Iterator[tuple[Pairs, slice]]:
        return zip(self._requests, self._slices, strict=True)

    def _of_pairs(self, given: Any) -> Array:
        """What every request gives for its pairs: an array or a number."""
        numbers = np.empty(self._count, self._work.precision)
        for request, part in self._parts():
            numbers[part] = given(request)
        return numbers

    def _scores(self, request: Pairs, part: slice) -> Scores:
        _, iou, *computed = (rows[part] for rows in self._computed)
        if len(request.masked):
            iou[request.masked] = np.nan
        scores = []
        for place, loss in enumerate(self._work.losses):
            value, *gradients = computed[place * (1 + self._sides) :][: 1 + self._sides]
            if request.reduction != "none":
                value = np.asarray(value.sum(dtype=np.float64), value.dtype)
            elif len(request.masked):
                value[request.masked] = np.nan
            scores.append(
                Score(
                    value,
                    gradients[0] if self._work.prediction_gradients else None,
                    gradients[-1] if self._work.target_gradients else None,
                    _next_running_mean(loss, request, iou),
                )
            )
        return Scores(scores, iou)

    def _error(self, request: Pairs) -> InvalidInputError:
        box_format = self._work.box_format
        return InvalidInputError(
            [
                *violations(request.predictions, "predictions", box_format),
                *violations(request.targets, "targets", box_format),
            ]
        )


_Each = TypeVar("_Each", Array, Rows)


def _joined(arrays: list[_Each]) -> _Each:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _scales(request: Pairs) -> Array:
    """Each pair's factor: its weight, over the number of valid pairs for a mean; 0 where masked."""
    scales = np.ones(len(request.predictions)) if request.weights is None else request.weights.copy()
    scales[request.masked] = 0
    if request.reduction == "mean":
        scales /= max(len(scales) - len(request.masked), 1)
    return scales


_GIVEN = {
    "crowd": lambda request: request.crowd,
    "image_size": lambda request: request.squared_image_diagonal,
    "running_mean": lambda request: request.running_mean,
}
"""What a request gives of what its work needs."""


def _next_running_mean(loss: Loss, request: Pairs, iou: Array) -> float | None:
    """The running mean with a share of this request's, where the loss needs one."""
    if not (isinstance(loss, WIoU) and loss.needed):
        return None
    if len(request.masked) == len(request.predictions):
        return request.running_mean
    mean = 1 - float(np.nanmean(iou, dtype=np.float64))
    return request.running_mean + loss.momentum * (mean - request.running_mean)
