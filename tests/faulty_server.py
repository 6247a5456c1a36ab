"""A real server whose device fails where a box asks for it: python -m tests.faulty_server, with the server's flags.

A pair asks by the first number of its prediction. All but the device is what everybody runs.
"""

from __future__ import annotations

import threading
import time

import torch
from torch import Tensor

from boxloss_server import __main__
from boxloss_server.engine import Evaluation, Kernels, memory_of
from boxloss_server.engine.kernels import Kernel
from boxloss_server.engine.memory import Memory
from boxloss_server.service import metrics, server

FAILS, LACKS_MEMORY, NEEDS_MUCH_MEMORY, LOSES_DEVICE, HANGS = (-1001.0, -1002.0, -1003.0, -1004.0, -1005.0)
FILLS_MEMORY = -1006.0
"""Nearly all of the device's memory is in use after such a batch, until the next."""
MEMORY = 2**12
"""Pairs that there is memory for if one of them needs much."""
WARM_UP = 2.0
"""Seconds that it takes to warm up where kernels are compiled ahead."""
_full = False
"""Whether the last batch has filled the memory."""


class FaultyKernels(Kernels):
    """Kernels of a device that is not well."""

    def of(self, work: Evaluation) -> Kernel:
        kernel = super().of(work)

        def faulty(batch: Tensor) -> Tensor:
            global _full
            asked = batch[0]
            _full = bool((asked == FILLS_MEMORY).any())
            if (asked == FAILS).any():
                raise RuntimeError("asked to fail")
            if (asked == LACKS_MEMORY).any() or ((asked == NEEDS_MUCH_MEMORY).any() and len(asked) > MEMORY):
                raise torch.OutOfMemoryError("CUDA out of memory")
            if (asked == LOSES_DEVICE).any():
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            if (asked == HANGS).any():
                threading.Event().wait()
            return kernel(batch)

        return faulty

    def prepare(self) -> None:
        if self._mode == "ahead":
            time.sleep(WARM_UP)


def faulty_memory_of(device: torch.device) -> Memory:
    """The device's memory, and nearly all of it in use where a box has asked for that."""
    memory = memory_of(device)
    return memory._replace(used=memory.total * 19 // 20) if _full else memory


if __name__ == "__main__":
    vars(server)["Kernels"] = FaultyKernels
    vars(metrics)["memory_of"] = faulty_memory_of
    __main__.main()
