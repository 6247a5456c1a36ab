"""cleanlab's ObjectLab on the same images, in the peers' environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.audit.precision import Suspicion
from benchmarks.contenders import PEERS_PYTHON
from benchmarks.errors import BenchmarkError, UnavailableError
from benchmarks.process import ROOT
from boxloss.audit.finding import Kind
from boxloss.audit.image import Image

KINDS = (Kind.MISSING, Kind.BAD_LOCATION, Kind.WRONG_CLASS)
"""What it calls overlooked, badloc and swap."""


class ObjectLab:
    """A process that answers from construction to the end of a `with` statement.

    Raises:
        UnavailableError: it is not installed.
    """

    def __init__(self) -> None:
        if not PEERS_PYTHON.exists():
            raise UnavailableError("there is no environment for peers; run make .venv-peers/installed")
        self._process = subprocess.Popen(
            [PEERS_PYTHON, "-m", "benchmarks.peers.objectlab"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        try:
            self._read()
        except BenchmarkError as error:
            raise UnavailableError(str(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def suspicions(self, images: Sequence[Image]) -> dict[Kind, list[Suspicion]]:
        """All labels, and all predictions that it holds to have none, the score being 1 minus cleanlab's."""
        scores = self._ask("scores", images)
        rows = [np.flatnonzero(~image.labels.crowd).tolist() for image in images]
        return {
            Kind.MISSING: [
                Suspicion(number, 1 - score, prediction=row)
                for number, each in enumerate(scores[Kind.MISSING])
                for row, score in enumerate(each)
                if score is not None
            ],
            **{
                kind: [
                    Suspicion(number, 1 - score, label=row)
                    for number, each in enumerate(scores[kind])
                    for row, score in zip(rows[number], each, strict=True)
                ]
                for kind in (Kind.BAD_LOCATION, Kind.WRONG_CLASS)
            },
        }

    def seconds(self, images: Sequence[Image]) -> float:
        """What `find_label_issues` takes."""
        return float(self._ask("seconds", images))

    def _ask(self, wanted: str, images: Sequence[Image]) -> Any:
        names = sorted({name for image in images for name in _names(image)})
        numbers = {name: number for number, name in enumerate(names)}
        assert self._process.stdin
        print(
            json.dumps([wanted, len(numbers), [_written(image, numbers) for image in images]]),
            file=self._process.stdin,
            flush=True,
        )
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return json.loads(line)
        _, complaint = self._process.communicate()
        raise BenchmarkError(f"cleanlab: {complaint.strip().rpartition(chr(10))[2]}")


def _names(image: Image) -> tuple[str, ...]:
    assert image.predictions is not None
    return (*image.labels.classes, *image.predictions.classes)


def _written(image: Image, numbers: dict[str, int]) -> dict[str, Any]:
    """As the peer reads it; it has no crowds, so those are left out."""
    labels, predictions = image.labels, image.predictions
    assert predictions is not None
    return {
        "labels": [
            [*box, numbers[name]]
            for box, name, crowd in zip(labels.boxes.tolist(), labels.classes, labels.crowd, strict=True)
            if not crowd
        ],
        "predictions": [
            [*box, numbers[name], score]
            for box, name, score in zip(
                predictions.boxes.tolist(), predictions.classes, predictions.scores.tolist(), strict=True
            )
        ],
    }
