"""Has the SDK of another environment talk to this environment's server, and compares the answers.

Usage: python -m tests.compatibility PYTHON, with the interpreter of the other environment.
"""

from __future__ import annotations

import subprocess
import sys

from tests.servers import ServerProcess

CALLS = """
import asyncio, sys
from importlib.metadata import version
import boxloss

boxes, targets = [[0, 0, 4, 4], [2, 2, 6, 5]], [[1, 2, 5, 8], [0, 0, 10, 8]]
with boxloss.Client(sys.argv[1]) as client:
    results = client.compare(boxes, targets, [boxloss.CIoU(), boxloss.AlphaIoU(boxloss.GIoU())], gradients=True)
    print([result.loss.tolist() for result in results], [result.gradient.tolist() for result in results])
    print(client.pairwise_iou(boxes, targets).tolist())
    print([result.loss.tolist() for result in client.evaluate_stream([(boxes, targets)] * 3, boxloss.DIoU())])
    print([loss.name for loss in client.losses()])
    try:
        client.evaluate(boxes, [[1, 0, 0, 1]] * 2, boxloss.CIoU())
    except boxloss.InvalidInputError as error:
        print(error)

async def main():
    async with boxloss.AsyncClient(sys.argv[1]) as client:
        print((await client.evaluate(boxes, targets, boxloss.SmoothL1())).loss.tolist())

asyncio.run(main())
print({name: version(name) for name in ("grpcio", "numpy", "protobuf")}, file=sys.stderr)
"""


def main(interpreter: str) -> None:
    """Runs the same calls in both environments; exits 1 where they differ."""
    with ServerProcess() as server:
        answers = [
            subprocess.run([python, "-c", CALLS, server.address], check=True, stdout=subprocess.PIPE).stdout
            for python in (sys.executable, interpreter)
        ]
    if answers[0] != answers[1]:
        sys.exit(f"the answers differ:\n{answers[0].decode()}\n{answers[1].decode()}")
    print("the answers are the same")


if __name__ == "__main__":
    main(sys.argv[1])
