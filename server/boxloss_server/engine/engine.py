"""The engine: one batch on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from boxloss.errors import InvalidInputError
from boxloss.losses import AlphaIoU, CIoU, EIoU, GIoU, IoU, SmoothL1
from boxloss_server.engine.batch import Batch
from boxloss_server.engine.formats import geometry_of, unit_box
from boxloss_server.engine.function import dtype_of
from boxloss_server.engine.kernels import Kernels
from boxloss_server.engine.pairs import Array, Evaluation, Grid, Matrix, Pairs, Rows, Scores
from boxloss_server.engine.stopwatch import Stopwatch
from boxloss_server.losses import ratio, similarity

_VECTOR = 64
"""Tiles are filled up to a multiple of this. The CPU computes whole vectors with other instructions than what is
left over, and so rounds differently: without it, a pair's result would depend on its neighbours."""

_TILE = {"cpu": 2**14, "cuda": 2**18}
"""Pairs that are computed at once: on a CPU what its caches hold, on a GPU what keeps it busy."""


class Engine:
    """Computes batches on one device. Calls may overlap: a batch owns its buffers.

    Args:
        device: where to compute.
        kernels: its compiled functions.

    Attributes:
        watch: runs while a function does, without what is copied around it.
    """

    def __init__(self, device: torch.device, kernels: Kernels) -> None:
        self.device = device
        self._kernels = kernels
        self.watch = Stopwatch(device)

    def warm_up(self) -> None:
        """Makes ready for the first request: the common kernels, and what torch sets up when it is first used."""
        self._kernels.prepare()
        boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
        for precision in ("float32", "float64"):
            work = Evaluation((SmoothL1(), CIoU(), EIoU(), AlphaIoU(GIoU())), "xyxy", precision, True, True)
            self.evaluate(work, [Pairs(boxes, boxes + 1)])
            self.matrix(Matrix(IoU(), "xyxy", precision), Grid(boxes, boxes))

    def run(
        self, work: Evaluation | Matrix, requests: Sequence[Pairs] | Sequence[Grid]
    ) -> Sequence[Scores | Array | InvalidInputError]:
        """Computes the same work for all requests of a batch; answers in their order."""
        if isinstance(work, Evaluation):
            return self.evaluate(work, cast(Sequence[Pairs], requests))
        return [self.matrix(work, grid) for grid in cast(Sequence[Grid], requests)]

    def evaluate(self, work: Evaluation, requests: Sequence[Pairs]) -> list[Scores | InvalidInputError]:
        """Evaluates losses and gradients over the pairs of all requests; those with invalid boxes get their error."""
        batch = Batch(work, requests)
        kernel = self._kernels.of(work)
        step = _TILE[self.device.type]
        computing: tuple[slice, Tensor] | None = None
        for start in range(0, len(batch) or 1, step):
            tile = slice(start, min(start + step, len(batch)))
            vectors = -(-(tile.stop - tile.start) // _VECTOR) or 1
            staging = torch.empty(
                (batch.planes, vectors * _VECTOR),
                dtype=dtype_of(work),
                pin_memory=self.device.type == "cuda",
            )
            batch.write(tile, staging.numpy())
            planes = staging if self.device.type == "cpu" else staging.to(self.device, non_blocking=True)
            with self.watch:
                planes = kernel(planes)
            # A GPU computes this tile while the one before is taken and the next is written.
            if computing:
                batch.take(computing[0], computing[1].cpu().numpy())
            computing = tile, planes
        if computing:
            batch.take(computing[0], computing[1].cpu().numpy())
        return batch.answers()

    def matrix(self, work: Matrix, grid: Grid) -> Array:
        """Computes the metric between all rows and all columns of one request, shape (N, M)."""
        rows = self._planes(work, grid.rows, grid.masked_rows)
        columns = self._planes(work, grid.columns, grid.masked_columns)
        with self.watch, torch.no_grad():
            geometry = geometry_of(rows[:, :, None], columns[:, None, :], work.box_format, grid.squared_image_diagonal)
            metric = similarity(geometry, work.metric)
            if grid.crowd is not None:
                crowd = torch.from_numpy(grid.crowd).to(self.device)
                metric = torch.where(crowd, ratio(geometry.intersection, geometry.area.expand(metric.shape)), metric)
        matrix: Array = metric.cpu().numpy()
        matrix[grid.masked_rows] = np.nan
        matrix[:, grid.masked_columns] = np.nan
        return matrix

    def _planes(self, work: Matrix, boxes: Array, masked: Rows) -> Tensor:
        planes = torch.tensor(boxes.T, dtype=dtype_of(work))
        planes[:, masked] = torch.tensor(unit_box(work.box_format), dtype=planes.dtype)[:, None]
        return planes.to(self.device)


def find_device(name: str) -> torch.device:
    """The device of a name: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: it does not exist here.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda:0" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; use auto, cpu or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not served; use auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device {name!r} is not here: {gpus} GPUs are visible; use auto, cpu or another number")
    return device
