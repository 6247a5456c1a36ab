"""Starts a server, scores a detector's boxes against hand-drawn ones, and shows how the server batches its callers.

Run it with `make demo`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import boxloss
from boxloss.cli.tables import assemble
from boxloss.compare.matching import match_coco
from boxloss.compare.scoring import score, valid_rows
from boxloss.contract.arrays import Array
from boxloss.files.boxes import read

COINS = Path(__file__).parent / "coins"
LOSSES = [
    boxloss.SmoothL1(),
    boxloss.IoU(),
    boxloss.GIoU(),
    boxloss.DIoU(),
    boxloss.CIoU(),
    boxloss.EIoU(),
    boxloss.FocalEIoU(),
    boxloss.AlphaIoU(boxloss.CIoU()),
]
CALLS = 64
METRICS = ("boxloss_build_info", "boxloss_batches_total", "boxloss_batch_requests_sum", "boxloss_batch_requests_count")

console = Console(highlight=False)


def main() -> None:
    """Runs the demonstration; exits with an error where the server does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Passes through what ends the server.
    with running_server() as (address, metrics):
        with boxloss.Client(address) as client:
            server = client.info()
            console.rule("A server")
            console.print(
                f"boxloss {server.version} offers {len(server.losses)} losses on {server.device}, at {address}"
            )
            console.rule("A detector of coins")
            predictions, targets = score_coins(client)
        console.rule("Many callers")
        asyncio.run(call_at_once(address, predictions, targets))
        console.rule("Metrics")
        show_metrics(metrics)
    console.rule("Your turn")
    console.print("The server has shut down. `make serve` starts one on localhost:50051,")
    console.print("and `.venv/bin/boxloss evaluate --help` says how to score your own boxes.")


@contextmanager
def running_server() -> Iterator[tuple[str, str]]:
    """A server process on free ports: its address, and the URL of its metrics."""
    flags = ["--host=127.0.0.1", "--port=0", "--metrics-port=0", "--log-level=info", "--log-format=json"]
    command = [sys.executable, "-P", "-m", "boxloss_server", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    events: dict[str, dict[str, Any]] = {}
    try:
        for line in process.stderr or ():
            event = json.loads(line) if line.startswith("{") else {"event": line}
            events[event["event"]] = event
            if "serving" in events:
                yield f"127.0.0.1:{events['serving']['port']}", events["serving metrics"]["url"]
                break
    finally:
        process.terminate()
        log = process.communicate()[1]
    if process.returncode or "serving" not in events:
        sys.exit(f"the server failed with exit code {process.returncode}: {''.join(events)}{log}")


def score_coins(client: boxloss.Client) -> tuple[Array, Array]:
    """Matches predictions with labels, prints the losses of each pair, and returns the boxes of the pairs."""
    predictions, labels = read(COINS / "predictions.json"), read(COINS / "labels.json")
    matching = match_coco(client, predictions, labels, valid_rows(client, predictions), valid_rows(client, labels))
    predicted = predictions.boxes[matching.predictions[matching.paired]]
    drawn = labels.boxes[matching.targets[matching.paired]]
    scores = score(client, predicted, drawn, {loss.name: loss for loss in LOSSES}, box_format="xywh")

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_footer=True)
    table.add_column("label", "mean", justify="right")
    table.add_column("IoU", f"{scores['iou'].mean():.3f}", justify="right")
    for loss in LOSSES:
        header = loss.title.replace("-", "-\n").replace(" ", "\n")  # Narrow, so that all fit on a terminal.
        table.add_column(f"{header}\nloss", f"{scores[f'loss_{loss.name}'].mean():.3f}", justify="right")
    rows = assemble(predictions, labels, matching, scores).to_pylist()
    for row in rows:
        if row["status"] == "paired":
            table.add_row(str(row["label_id"]), *(f"{row[name]:.3f}" for name in scores))
    console.print("The IoU of each coin's label with its prediction, and the losses:\n")
    console.print(table)
    missed = [str(row["label_id"]) for row in rows if row["status"] == "missed"]
    spurious = sum(row["status"] == "spurious" for row in rows)
    console.print(
        f"\n{len(missed)} of {len(labels)} labels missed ({', '.join(missed)}): no prediction has an IoU of 0.5."
    )
    console.print(f"{spurious} of {len(predictions)} predictions spurious: no label has an IoU of 0.5.")
    return predicted, drawn


async def call_at_once(address: str, predictions: Array, targets: Array) -> None:
    """Sends calls all at once, and prints what batches the server made of them."""
    async with boxloss.AsyncClient(address) as client:
        waiting = (client.evaluate(predictions, targets, boxloss.CIoU(), box_format="xywh") for _ in range(CALLS))
        results = await asyncio.gather(*waiting)
    # By pairs: the client itself sends small calls together, and to the server these are one request.
    calls = Counter(result.executions[0].batch_pairs // len(predictions) for result in results)
    batches = [size for size in sorted(calls, reverse=True) for _ in range(calls[size] // size)]
    console.print(f"{CALLS} calls at once became {len(batches)} batches, of {', '.join(map(str, batches))} calls.")


def show_metrics(url: str) -> None:
    """Prints where the metrics are, and a few of them."""
    with urllib.request.urlopen(url, timeout=5) as response:
        lines = response.read().decode().splitlines()
    console.print(f"Prometheus reads them from {url}, among them:")
    for line in lines:
        if line.startswith(METRICS):
            console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
