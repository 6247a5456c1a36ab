"""The engine: one batch on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import numpy as np
import structlog
import torch
from torch import Tensor

from boxloss.audit.overlaps import Overlaps
from boxloss.errors import InvalidInputError, OutOfMemoryError
from boxloss.losses import AlphaIoU, CIoU, EIoU, GIoU, IoU, SmoothL1
from boxloss_server.engine.batch import Batch
from boxloss_server.engine.failures import DeviceLostError, lacks_memory, loses_device
from boxloss_server.engine.formats import geometry_of, unit_box
from boxloss_server.engine.function import dtype_of
from boxloss_server.engine.kernels import Kernel, Kernels
from boxloss_server.engine.overlaps import ImageBoxes, Overlap, overlaps
from boxloss_server.engine.pairs import Array, Evaluation, Grid, Matrix, Pairs, Rows, Scores
from boxloss_server.engine.stopwatch import Stopwatch
from boxloss_server.losses import ratio, similarity

_VECTOR = 64
"""Tiles are filled up to a multiple of this. The CPU computes whole vectors with other instructions than what is
left over, and so rounds differently: without it, a pair's result would depend on its neighbors."""

_TILES = {"cpu": (2**14, 2**11), "cuda": (2**18, 2**15, 2**12)}
"""Pairs that are computed at once: on a CPU what its caches hold, on a GPU what keeps it busy. Fewer where that takes
more memory than there is."""

_Computed = TypeVar("_Computed")

_log = structlog.get_logger()


class Engine:
    """Computes batches on one device. Calls may overlap: a batch owns its buffers.

    Args:
        device: where to compute.
        kernels: its compiled functions.
        progressed: called at each step that takes its time, from the thread that computes.

    Attributes:
        watch: runs while a function does, without what is copied around it.
    """

    def __init__(self, device: torch.device, kernels: Kernels, progressed: Callable[[], None] = lambda: None) -> None:
        self.device = device
        self._kernels = kernels
        self._progressed = progressed
        self.watch = Stopwatch(device)

    def warm_up(self) -> None:
        """Makes ready for the first request, after the kernels: what torch sets up when it is first used."""
        boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
        for precision in ("float32", "float64"):
            work = Evaluation((SmoothL1(), CIoU(), EIoU(), AlphaIoU(GIoU())), "xyxy", precision, True, True)
            self.evaluate(work, [Pairs(boxes, boxes + 1)])
            self.matrix(Matrix(IoU(), "xyxy", precision), Grid(boxes, boxes))

    def run(
        self, work: Evaluation | Matrix | Overlap, requests: Sequence[Pairs] | Sequence[Grid] | Sequence[ImageBoxes]
    ) -> Sequence[Scores | Array | Overlaps | InvalidInputError]:
        """Computes the same work for all requests of a batch; answers in their order.

        Raises:
            OutOfMemoryError: they need more memory than there is.
            DeviceLostError: the device failed, and will again.
        """
        try:
            if isinstance(work, Evaluation):
                return self.evaluate(work, cast(Sequence[Pairs], requests))
            if isinstance(work, Overlap):
                with self.watch:
                    return overlaps(cast(Sequence[ImageBoxes], requests), self.device)
            return [self.matrix(work, grid) for grid in cast(Sequence[Grid], requests)]
        except (RuntimeError, MemoryError) as error:
            if loses_device(error):
                raise DeviceLostError(f"the device {self.device} failed; ask another server, or later") from error
            if not lacks_memory(error):
                raise
        self._free()
        raise OutOfMemoryError("the server lacks the memory to compute this; send less at once")

    def evaluate(self, work: Evaluation, requests: Sequence[Pairs]) -> list[Scores | InvalidInputError]:
        """Evaluates losses and gradients over the pairs of all requests; those with invalid boxes get their error."""
        batch = Batch(work, requests)
        kernel = self._kernels.of(work)
        self._in_tiles(partial(self._evaluate, kernel, batch, dtype_of(work)))
        return batch.answers()

    def _evaluate(self, kernel: Kernel, batch: Batch, dtype: torch.dtype, step: int) -> None:
        computing: tuple[slice, Tensor] | None = None
        for start in range(0, len(batch) or 1, step):
            self._progressed()
            tile = slice(start, min(start + step, len(batch)))
            vectors = -(-(tile.stop - tile.start) // _VECTOR) or 1
            staging = torch.empty(
                (batch.planes, vectors * _VECTOR),
                dtype=dtype,
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

    def matrix(self, work: Matrix, grid: Grid) -> Array:
        """Computes the metric between all rows and all columns of one request, shape (N, M)."""
        rows = self._planes(work, grid.rows, grid.masked_rows)
        columns = self._planes(work, grid.columns, grid.masked_columns)
        crowd = None if grid.crowd is None else torch.from_numpy(grid.crowd).to(self.device)

        def bands(pairs: int) -> list[Array]:
            height = max(pairs // max(len(grid.columns), 1), 1)
            return [band(some).cpu().numpy() for some in torch.split(rows, height, dim=1)]

        @torch.no_grad()
        def band(some: Tensor) -> Tensor:
            self._progressed()
            with self.watch:
                geometry = geometry_of(
                    some[:, :, None], columns[:, None, :], work.box_format, grid.squared_image_diagonal
                )
                metric = similarity(geometry, work.metric)
                if crowd is None:
                    return metric
                return torch.where(crowd, ratio(geometry.intersection, geometry.area.expand(metric.shape)), metric)

        matrix = np.concatenate(self._in_tiles(bands))
        matrix[grid.masked_rows] = np.nan
        matrix[:, grid.masked_columns] = np.nan
        return matrix

    def _in_tiles(self, compute: Callable[[int], _Computed]) -> _Computed:
        """Computes in tiles of so many pairs; in smaller ones where the memory does not suffice."""
        *more, least = _TILES[self.device.type]
        for pairs in more:
            try:
                return compute(pairs)
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                _log.warning("out of memory; trying smaller tiles", tile=pairs, error=str(error))
            self._free()  # Not in the except clause: while the error lives, so do the tensors in its frames.
        return compute(least)

    def _free(self) -> None:
        """Gives back the memory that torch keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
