"""What descents have ended in, kept in a folder: a file for each loss, and tables of all of them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from examples.simulation.cases import PER_POINT
from examples.simulation.descent import Descent

from boxloss.contract.arrays import Array
from boxloss.contract.words import BoxFormat

Through = Literal["service", "process"]

OFF = 0.1
"""A box whose error is above this has not found its target."""


@dataclass(frozen=True)
class Setting:
    """What was run."""

    loss: str
    """As --losses spells it."""
    coordinates: BoxFormat
    points: int
    iterations: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What it gave.

    Attributes:
        setting: what was run.
        through: who computed the gradients.
        curve: mean error before the first iteration and after each.
        positions: mean final error of the cases of each point.
        median: of the final errors.
        worst: of the final errors.
        off: share of the cases that have not found their target.
        apart: largest difference of a final error from that of the same case in process; NaN where none was computed.
    """

    setting: Setting
    through: Through
    curve: Array
    positions: Array
    median: float
    worst: float
    off: float
    apart: float = math.nan

    @property
    def mean(self) -> float:
        """Mean final error."""
        return float(self.curve[-1])

    @classmethod
    def of(cls, setting: Setting, through: Through, descent: Descent, in_process: Descent | None = None) -> Result:
        """Sums up a descent, and compares it with the same one in process."""
        final = descent.final
        return cls(
            setting,
            through,
            descent.curve,
            positions=final.reshape(-1, PER_POINT).mean(axis=1),
            median=float(np.median(final)),
            worst=float(final.max()),
            off=float(np.mean(final > OFF)),
            apart=float(np.abs(final - in_process.final).max()) if in_process else math.nan,
        )

    def save(self, folder: Path) -> None:
        """Writes it to a file of the folder, over an earlier one of the same loss."""
        setting = self.setting
        name = re.sub(r"[^\w.]+", "-", f"{setting.loss}-{setting.coordinates}-{self.through}")
        np.savez(
            folder / f"{name}.npz",
            setting=json.dumps(asdict(setting)),
            through=self.through,
            curve=self.curve,
            positions=self.positions,
            numbers=(self.median, self.worst, self.off, self.apart),
        )

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            setting = Setting(**json.loads(str(file["setting"])))
            through: Through = "service" if str(file["through"]) == "service" else "process"
            return cls(setting, through, file["curve"], file["positions"], *file["numbers"].tolist())


def stored(folder: Path) -> list[Result]:
    """The results of all runs into a folder, best first."""
    return sorted((Result.load(path) for path in folder.glob("*.npz")), key=lambda result: result.mean)


def write_tables(results: Sequence[Result], folder: Path) -> None:
    """Writes errors.csv, with a row for each result, and curves.csv, with a row for each of its iterations."""
    settings = [asdict(result.setting) | {"through": result.through} for result in results]
    errors = [
        setting | {"mean": each.mean} | {name: getattr(each, name) for name in ("median", "worst", "off", "apart")}
        for setting, each in zip(settings, results, strict=True)
    ]
    curves = [
        {"loss": setting["loss"], "coordinates": setting["coordinates"], "through": each.through}
        | {"iteration": iteration, "mean": error}
        for setting, each in zip(settings, results, strict=True)
        for iteration, error in enumerate(each.curve.tolist())
    ]
    for name, rows in (("errors", errors), ("curves", curves)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
