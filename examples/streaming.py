"""A stream of batches through one call: results come while later batches are read, in memory that does not grow.

Run it with `python examples/streaming.py [HOST:PORT]`; without an address, a server starts inside the process.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import boxloss

LABELS = json.loads((Path(__file__).parent / "coins/labels.json").read_text())["annotations"]
COINS = np.array([label["bbox"] for label in LABELS], float)  # Left, top, width, height.
SHIFTS = range(0, 101, 10)


def batches() -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Predictions and targets: the coins, predicted farther and farther to the right. There could be millions."""
    for pixels in SHIFTS:
        yield COINS + np.array([pixels, 0, 0, 0]), COINS


client = boxloss.Client(sys.argv[1]) if len(sys.argv) > 1 else boxloss.embedded()
with client:
    results = client.evaluate_stream(batches(), boxloss.GIoU(), box_format="xywh", reduction="mean")
    for pixels, result in zip(SHIFTS, results, strict=True):
        print(f"{pixels:3} px to the right: IoU {result.iou.mean():.3f}, GIoU loss {result.loss:.3f}")
