"""The peer cleanlab, whose ObjectLab audits labels: python -m benchmarks.peers.objectlab. It answers lines of JSON.

A line is what is wanted, the number of classes, and the images: each with rows of `labels`, [x1, y1, x2, y2, class],
and of `predictions`, [x1, y1, x2, y2, class, score]. Wanted are "scores", of each label and, for missing labels, of
each prediction, 1 where nothing is wrong and null where there is no score; or "seconds", of finding all issues.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, TypeAlias

import numpy as np
from cleanlab.object_detection.filter import find_label_issues
from cleanlab.object_detection.rank import (
    compute_badloc_box_scores,
    compute_overlooked_box_scores,
    compute_swap_box_scores,
)

Rows: TypeAlias = Sequence[Sequence[float]]


def main() -> None:
    """Answers until there is nothing more to read."""
    output = sys.stdout
    with redirect_stdout(sys.stderr):  # It says more than was asked.
        print(json.dumps("ready"), file=output, flush=True)
        for line in sys.stdin:
            wanted, classes, images = json.loads(line)
            labels = [_labels(image["labels"]) for image in images]
            rows = [_by_class(image["predictions"], classes) for image in images]
            found = [_predictions(image["predictions"], each) for image, each in zip(images, rows, strict=True)]
            answer = _scores(labels, found, rows) if wanted == "scores" else _seconds(labels, found)
            print(json.dumps(answer), file=output, flush=True)


def _scores(labels: Any, predictions: Any, rows: Any) -> dict[str, list[list[float | None]]]:
    overlooked = compute_overlooked_box_scores(labels=labels, predictions=predictions)
    misplaced = compute_badloc_box_scores(labels=labels, predictions=predictions)
    swapped = compute_swap_box_scores(labels=labels, predictions=predictions)
    return {
        "missing": [_as_they_came(*each) for each in zip(overlooked, rows, strict=True)],
        "bad_location": [scores.tolist() for scores in misplaced],
        "wrong_class": [scores.tolist() for scores in swapped],
    }


def _seconds(labels: Any, predictions: Any) -> float:
    started = time.perf_counter()
    find_label_issues(labels, predictions)
    return time.perf_counter() - started


def _labels(rows: Rows) -> dict[str, Any]:
    numbers = np.array(rows, float).reshape(-1, 5)
    return {"bboxes": numbers[:, :4], "labels": numbers[:, 4].astype(int)}


def _by_class(rows: Rows, classes: int) -> list[list[int]]:
    """The numbers of each class's rows: cleanlab wants predictions class by class."""
    return [[number for number, row in enumerate(rows) if row[4] == each] for each in range(classes)]


def _predictions(rows: Rows, by_class: list[list[int]]) -> Any:
    found = np.empty(len(by_class), object)
    for each, numbers in enumerate(by_class):
        found[each] = np.array([[*rows[number][:4], rows[number][5]] for number in numbers], float).reshape(-1, 5)
    return found


def _as_they_came(scores: Any, by_class: list[list[int]]) -> list[float | None]:
    ordered = [number for numbers in by_class for number in numbers]
    score_of = dict(zip(ordered, scores.tolist(), strict=True))
    return [None if np.isnan(score_of[number]) else score_of[number] for number in range(len(ordered))]


if __name__ == "__main__":
    main()
