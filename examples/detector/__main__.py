"""The command: python -m examples.detector."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from examples.detector.agreement import Agreement, Curves, apart, nudge, relative
from examples.detector.drawing import draw_curves, draw_pictures
from examples.detector.evaluation import Quality, detect, quality
from examples.detector.training import SPEC, Recipe, deterministic, held_out, in_process, train
from rich import box
from rich.console import Console
from rich.table import Table

import boxloss
from boxloss.torch import BoxLoss

HELD_OUT = 200
"""Pictures on which a detector is judged."""
DRAWN = 12
"""Of these, how many are drawn."""
FIRST, LAST = 50, 50
"""Steps at the beginning, and at the end, over which trainings are compared."""

_console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
_progress = Console(stderr=True, highlight=False)


class Precision(StrEnum):
    """Of weights, pictures and boxes."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def main(
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a server; one starts inside this process unless given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Steps of each training.")] = Recipe.steps,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a step.")] = Recipe.batch,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures and the first weights.")] = Recipe.seed,
    precision: Annotated[Precision, typer.Option(help="Of weights, pictures and boxes.")] = Precision.FLOAT32,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for curves and pictures.")] = Path(
        "build/detector"
    ),
) -> None:
    """Trains a small detector with its box loss computed in this process, and again by the service, and compares."""
    recipe = Recipe(steps, batch, seed, torch.float64 if precision is Precision.FLOAT64 else torch.float32)
    try:
        with boxloss.Client(address) if address else boxloss.embedded(device="cpu") as client, deterministic():
            client.info(timeout=5)  # Nobody waits for a training to learn that there is no server.
            output.mkdir(parents=True, exist_ok=True)
            compare(recipe, client, output)
    except (boxloss.BoxlossError, ValueError) as error:
        sys.exit(f"detector: {error}")


def compare(recipe: Recipe, client: boxloss.Client, output: Path) -> None:
    """Trains in all ways, prints how they compare, and writes curves and pictures into a folder."""
    remote = BoxLoss(client, SPEC)
    agreement = Agreement(in_process, remote)
    _progress.print("training by this process; the service is asked at each step, too")
    here = train(recipe, in_process, agreement)
    _progress.print("training by the service")
    served = train(recipe, remote)
    _progress.print("training by this process, the box loss off by a rounding")
    nudged = train(recipe, nudge(in_process))
    curves = Curves(here.losses, served.losses, nudged.losses, agreement)

    seen = held_out(recipe, HELD_OUT)
    found = [detect(trained.model, seen) for trained in (here, served, nudged)]
    _show(curves, [quality(each, seen) for each in found])
    draw_curves(curves, output / "detector-curves.png")
    draw_pictures(seen[:DRAWN], found[1][:DRAWN], output / "detector-pictures.png")
    (output / "curves.json").write_text(json.dumps(curves.rows()))
    _console.print(f"detector-curves.png, detector-pictures.png and curves.json are in {output}")


def _show(curves: Curves, qualities: Sequence[Quality]) -> None:
    trained = curves.here, curves.served, curves.nudged
    ends = [fmean(losses[-LAST:]) for losses in trained]
    away = [apart(curves.here, losses) for losses in trained]
    table = Table("box loss", "in this process", "by the service", "off by a rounding", box=box.SIMPLE_HEAD)
    table.add_row(f"AP50, {HELD_OUT} held-out pictures", *(f"{each.ap50:.3f}" for each in qualities))
    table.add_row("mean IoU of their objects", *(f"{each.mean_iou:.3f}" for each in qualities))
    table.add_row(f"loss, mean of the last {LAST} steps", *(f"{end:.4f}" for end in ends))
    table.add_row("its relative difference", "", *(f"{relative(ends[0], end):.1e}" for end in ends[1:]))
    table.add_row("largest, of any step", "", *(f"{max(each):.1e}" for each in away[1:]))
    table.add_row(f"of the first {FIRST} steps", "", *(f"{max(each[:FIRST]):.1e}" for each in away[1:]))
    table.add_row("same weights: of a step", "", f"{max(curves.agreement.losses):.1e}", "")
    table.add_row("same weights: of a step's gradients", "", f"{max(curves.agreement.gradients):.1e}", "")
    _console.print(table)


if __name__ == "__main__":
    typer.run(main)
