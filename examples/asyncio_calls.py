"""Calls from many tasks at once: each coin of a picture is looked for among the boxes that a detector found.

Run it with `python examples/asyncio_calls.py [HOST:PORT]`; without an address, a server starts inside the process.
"""

import asyncio
import json
import sys
from pathlib import Path

import boxloss

COINS = Path(__file__).parent / "coins"
LABELS = [label["bbox"] for label in json.loads((COINS / "labels.json").read_text())["annotations"]]
FOUND = [prediction["bbox"] for prediction in json.loads((COINS / "predictions.json").read_text())]


async def look_for(coin: list[float], client: boxloss.AsyncClient) -> boxloss.LossResult:
    """Evaluates the box that overlaps a coin most."""
    overlaps = await client.pairwise_iou([coin], FOUND, box_format="xywh")
    return await client.evaluate([FOUND[overlaps.argmax()]], [coin], boxloss.CIoU(), box_format="xywh")


async def main(address: str) -> None:
    """Looks for all coins at the same time."""
    async with boxloss.AsyncClient(address) as client:
        results = await asyncio.gather(*(look_for(coin, client) for coin in LABELS))
    for number, result in enumerate(results, start=1):
        print(f"coin {number:2}  IoU {result.iou[0]:.3f}  loss {result.loss[0]:.3f}")
    messages = len({result.executions for result in results})
    print(f"{len(results)} evaluations shared {messages} messages")  # Each message brings its own times.


if len(sys.argv) > 1:
    asyncio.run(main(sys.argv[1]))
else:
    with boxloss.embedded() as server:
        asyncio.run(main(server.address))
