"""The loss without any service: eager torch, the compiled kernel, and the engine around it, in one process.

Usage: python -m benchmarks.in_process CORE,... ROUNDS SECONDS PAIRS... Prints seconds per evaluation as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.process import ROOT
from benchmarks.spread import Spread, percentile, ratio, spread
from benchmarks.workload import LOSS, Workload
from boxloss_server.engine.pairs import Evaluation

if TYPE_CHECKING:
    from boxloss_server.engine import Engine, Kernels

Evaluate = Callable[[], object]

WORK = Evaluation((LOSS,), "xyxy", "float32", prediction_gradients=True, target_gradients=False)

_OFTEN = 20
"""Evaluations after which the engine has decided to compile what it evaluates."""


@dataclass(frozen=True)
class Kernel:
    """The ways of computing, side by side.

    Attributes:
        pairs: of a batch.
        cores: that they ran on.
        seconds: of an evaluation, by way, one a round.
    """

    pairs: int
    cores: int
    seconds: dict[str, list[float]]

    def speedup(self, way: str) -> Spread:
        """How many times faster than eager torch."""
        return ratio(self.seconds["eager"], self.seconds[way])

    def spread(self, way: str) -> Spread:
        """Seconds of an evaluation."""
        return spread(self.seconds[way])


def kernels(sizes: Iterable[int], cores: Sequence[int], rounds: int, seconds: float) -> list[Kernel]:
    """Measures each size in a process of its own on these cores."""
    arguments = (",".join(map(str, cores)), *map(str, (rounds, seconds, *sizes)))
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.in_process", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise BenchmarkError(f"the loss in-process failed: {ended.stderr.strip()[-500:]}")
    seen = json.loads(ended.stdout.splitlines()[-1])  # The engine logs, too.
    return [Kernel(pairs, len(cores), taken) for pairs, taken in seen]


def eager(workload: Workload) -> Evaluate:
    """Plain autograd, as a training loop calls it."""
    import torch

    from boxloss_server.losses import box_loss

    predictions, targets = torch.from_numpy(workload.boxes)

    def evaluate() -> object:
        boxes = predictions.detach().requires_grad_()
        torch.autograd.backward(box_loss(boxes, targets, LOSS).sum())
        return boxes.grad

    return evaluate


def kernel(workload: Workload) -> Evaluate:
    """The compiled function alone, from planes to planes."""
    import torch

    from boxloss_server.engine import Pairs
    from boxloss_server.engine.batch import Batch

    _, kernels = engine_of(WORK)
    batch = Batch(WORK, [Pairs(*workload.boxes)])
    planes = torch.empty(batch.planes, len(batch))
    batch.write(slice(0, len(batch)), planes.numpy())
    function = kernels.of(WORK)
    return lambda: function(planes)


def engine(workload: Workload) -> Evaluate:
    """The service's engine: from the arrays of a request to those of its answer."""
    from boxloss_server.engine import Pairs

    computer, _ = engine_of(WORK)
    pairs = Pairs(*workload.boxes)
    return lambda: computer.evaluate(WORK, [pairs])


@cache
def engine_of(work: Evaluation) -> tuple[Engine, Kernels]:
    """The service's engine with its settings, once it has compiled the work."""
    from boxloss_server.engine import Engine, Kernels, find_device
    from boxloss_server.settings import Settings

    settings = Settings()
    device = find_device("cpu")
    kernels = Kernels(device, settings.compile, settings.kernel_cache, settings.max_kernels)
    for _ in range(_OFTEN):
        kernels.of(work)
    kernels.wait()
    return Engine(device, kernels), kernels


def _main(cores: list[int], rounds: int, seconds: float, sizes: list[int]) -> None:
    import torch

    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    seen = []
    for pairs in sizes:
        workload = Workload(pairs)
        ways = {"eager": eager(workload), "kernel": kernel(workload), "engine": engine(workload)}
        for evaluate in ways.values():
            _time(evaluate, seconds / 2)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, evaluate in ways.items():
                taken[way].append(_time(evaluate, seconds))
        seen.append((pairs, taken))
    print(json.dumps(seen))


def _time(evaluate: Evaluate, seconds: float) -> float:
    """The median over evaluations that take so many seconds together, three at least."""
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        started = time.perf_counter()
        evaluate()
        taken.append(time.perf_counter() - started)
    return percentile(taken, 50)


if __name__ == "__main__":
    _main(
        [int(core) for core in sys.argv[1].split(",")],
        int(sys.argv[2]),
        float(sys.argv[3]),
        [int(pairs) for pairs in sys.argv[4:]],
    )
