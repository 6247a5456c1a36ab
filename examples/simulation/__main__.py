"""The command: python -m examples.simulation."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from examples.simulation import gradients
from examples.simulation.cases import PER_POINT, POINTS, scatter
from examples.simulation.contenders import ALL
from examples.simulation.descent import ITERATIONS, Descent, descend
from examples.simulation.gradients import Source
from examples.simulation.plots import draw
from examples.simulation.results import OFF, Result, Setting, Through, stored, write_tables
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import boxloss
from boxloss.contract.arrays import Array
from boxloss.errors import BoxlossError, InvalidInputError, fault
from boxloss.losses import Loss
from boxloss.losses.notation import label, parse

_out = Console(highlight=False)
_err = Console(highlight=False, stderr=True)


def main(
    losses: Annotated[
        str,
        typer.Option(
            help="What to descend, separated by blanks: 'iou giou smooth_l1:beta=0.5'.", show_default="the catalogue"
        ),
    ] = " ".join(map(label, ALL)),
    points: Annotated[int, typer.Option(min=1, help=f"Points with anchors; each has {PER_POINT} cases.")] = POINTS,
    iterations: Annotated[int, typer.Option(min=1, help="How often each box is moved.")] = ITERATIONS,
    coordinates: Annotated[
        Literal["cxcywh", "xyxy"], typer.Option(help="What of a box is moved: center and sides, or corners.")
    ] = "cxcywh",
    through: Annotated[
        Literal["service", "process", "both"], typer.Option(help="Who computes the gradients.")
    ] = "process",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The server.", show_default="one inside this process")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="For results and pictures.")] = Path(
        "build/simulation"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the points.")] = 0,
) -> None:
    """Lets losses move 1,715,000 boxes onto their targets, as in the DIoU paper, and tells how far off they end.

    A later run into the same folder adds its losses to the tables and the pictures.
    """
    chosen = _chosen(losses)
    if address and through == "process":
        raise fault("--address", "names a server, which --through process does not ask; take service or both")
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sources: dict[Through, Source] = {}
        if through != "service":
            sources["process"] = stack.enter_context(gradients.process())
        if through != "process":
            client = boxloss.Client(address) if address else boxloss.embedded()
            sources["service"] = gradients.service(stack.enter_context(client))
        progress = stack.enter_context(Progress(console=_err, transient=True, disable=not _err.is_terminal))
        places = scatter(points, seed)
        for loss in chosen:
            setting = Setting(label(loss), coordinates, points, iterations, seed)
            for result in _run(loss, sources, setting, places, progress):
                result.save(output)
    results = stored(output)
    write_tables(results, output)
    _out.print(_table(results))
    pictures = draw(results, output)
    _out.print(f"{output}: errors.csv, curves.csv, {', '.join(picture.name for picture in pictures)}")


def _run(
    loss: Loss, sources: Mapping[Through, Source], setting: Setting, places: Array, progress: Progress
) -> Iterator[Result]:
    """The results of a loss by each source, in process first."""
    in_process: Descent | None = None
    for through, source in sources.items():
        task = progress.add_task(f"{setting.loss}, {through}", total=len(places) * PER_POINT * setting.iterations)
        descent = descend(
            source, loss, places, setting.iterations, setting.coordinates, partial(progress.advance, task)
        )
        progress.remove_task(task)
        yield Result.of(setting, through, descent, in_process)
        in_process = descent


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("loss", "moved", "through"):
        table.add_column(heading)
    for heading in ("cases", "mean error", "median", f"above {OFF:g}", "apart"):
        table.add_column(heading, justify="right")
    for result in results:
        setting = result.setting
        table.add_row(
            setting.loss,
            setting.coordinates,
            result.through,
            f"{setting.points * PER_POINT:,}",
            f"{result.mean:.4f}",
            f"{result.median:.4f}",
            f"{result.off:.2%}",
            "" if math.isnan(result.apart) else f"{result.apart:.0e}",
        )
    return table


def _chosen(losses: str) -> list[Loss]:
    try:
        chosen = [parse(each) for each in losses.split()]
    except InvalidInputError as error:
        raise fault("--losses", error.violations[0].description) from None
    if not chosen:
        raise fault("--losses", "names none; leave it out for all")
    for loss in chosen:
        if not loss.axis_aligned:
            raise fault("--losses", f"{loss.name} compares oriented boxes, and these are axis-aligned")
    return chosen


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits; its errors become one line on standard error."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(main)
    try:
        app(arguments, prog_name="python -m examples.simulation")
    except BoxlossError as error:
        sys.exit(f"simulation: {error}")


if __name__ == "__main__":
    run()
