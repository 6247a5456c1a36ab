"""What it costs a training step to have its box loss computed by a server: python -m benchmarks.detector."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from examples.detector.model import Detector
from examples.detector.training import SPEC, Batch, LossFunction, Recipe, batch_of, in_process, loss_of
from rich.console import Console

import boxloss
from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss
from benchmarks.errors import BenchmarkError
from benchmarks.measure import check_counts
from benchmarks.options import Options
from benchmarks.spread import Spread, ratio, spread
from benchmarks.tables import Table, between, number
from boxloss.torch import BoxLoss

_STEPS = 10
"""Steps of a round, each way in turns."""
_SAME = 1e-5
"""By more than this share the two losses must not differ."""

_console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
_progress = Console(stderr=True, highlight=False)


@dataclass
class Cost:
    """Steps with pictures in a batch, their box loss computed in both ways. Lists have a median of each round.

    Attributes:
        pictures: in a batch.
        pairs: of boxes in it.
        steps: seconds of a step, in-process and remote.
        losses: seconds of the box loss and its gradient alone, in-process and remote.
    """

    pictures: int
    pairs: int
    steps: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    losses: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def ratio(self) -> Spread:
        """A remote step over one in-process."""
        return ratio(self.steps[1], self.steps[0])

    @property
    def added(self) -> Spread:
        """Milliseconds that a remote box loss takes longer than one in-process."""
        return spread([(remote - here) * 1e3 for here, remote in zip(*self.losses, strict=True)])


def main(
    pictures: Annotated[str, typer.Option(help="Pictures in a batch, as 1,16.")] = "1,4,16,64",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 15,
) -> None:
    """Compares training steps of examples/detector whose box loss is computed in-process and by a server process."""
    sizes = _numbers(pictures)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: ended by SIGTERM"))  # The server ends as well.
    with _server() as server, boxloss.Client(f"127.0.0.1:{server.port}") as client:
        torch.set_num_threads(1)  # The server has the other cores.
        remote = BoxLoss(client, SPEC)
        costs = []
        for size in sizes:
            before = server.counts()
            costs.append(cost(batch_of(Recipe(batch=size), 0), remote, rounds))
            check_counts(server, before, 1 + 2 * _STEPS * (rounds + 1))
            _progress.print(f"pictures in a batch: {size}")
    table(costs).show(_console)


def cost(batch: Batch, remote: LossFunction, rounds: int) -> Cost:
    """Measures steps on one batch, after a round that warms up.

    Raises:
        BenchmarkError: the two ways disagree.
    """
    torch.manual_seed(0)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters())
    positive = batch.targets.positive
    boxes = model(batch.pixels).boxes[positive].detach()
    targets = batch.targets.boxes[positive]

    def step(box_loss: LossFunction) -> None:
        loss = loss_of(model(batch.pixels), batch.targets, box_loss)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    def loss_alone(box_loss: LossFunction) -> None:
        predictions = boxes.detach().requires_grad_()
        torch.autograd.backward(box_loss(predictions, targets))

    ways = in_process, remote
    values = [way(boxes, targets).item() for way in ways]
    if abs(values[1] - values[0]) > _SAME * values[0]:
        raise BenchmarkError(f"the losses are {values[0]:g} in-process and {values[1]:g} remote")
    measured = Cost(len(batch.pixels), len(boxes))
    for turn in range(rounds + 1):
        for seconds, work in ((measured.steps, step), (measured.losses, loss_alone)):
            for kept, taken in zip(seconds, _round(work, ways), strict=True):
                if turn:
                    kept.append(taken)
    return measured


def table(costs: Sequence[Cost]) -> Table:
    """Milliseconds of steps and of the box loss in them."""
    rows = []
    for each in costs:
        steps, alone = ([number(median(way) * 1e3) for way in ways] for ways in (each.steps, each.losses))
        times = f"{each.ratio.median:.3f}", f"{each.ratio.low:.3f} to {each.ratio.high:.3f}"
        rows.append(
            (
                str(each.pictures),
                str(each.pairs),
                *steps,
                *times,
                *alone,
                number(each.added.median),
                between(each.added),
            )
        )
    columns = (
        *("pictures", "pairs", "step in-process ms", "step remote ms", "ratio", "least to most"),
        *("box loss in-process ms", "box loss remote ms", "added ms", "added, least to most"),
    )
    rounds, cores = len(costs[0].steps[0]), len(os.sched_getaffinity(0))
    note = f"Medians of {rounds} rounds of {_STEPS} steps each way, on one thread; {cores} cores for it and the server."
    return Table("A training step, its box loss in-process and remote", columns, rows, (), note)


def _round(work: Callable[[LossFunction], None], ways: Sequence[LossFunction]) -> list[float]:
    """The median seconds of each way. They take turns, and in who begins."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(_STEPS):
        for way in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            work(ways[way])
            taken[way].append(time.perf_counter() - started)
    return [median(each) for each in taken]


@contextmanager
def _server() -> Iterator[Boxloss]:
    """A server process in its default settings, once it has compiled the loss."""
    options = Options((), (), (), 1, 1.0, 1.0, Path("build/bench/detector"), frozenset(os.sched_getaffinity(0)))
    server = Boxloss()
    _progress.print("a server starts, and compiles the loss if it has not before")
    with Arena(options) as arena:
        arena.start(server)
        yield server


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise typer.BadParameter(f"{text!r}: give numbers of 1 or more, separated by commas", param_hint="--pictures")
    return tuple(map(int, words))


if __name__ == "__main__":
    try:
        typer.run(main)
    except (BenchmarkError, boxloss.BoxlossError) as error:
        sys.exit(f"benchmarks: {error}")
