"""Memory of a device."""

from __future__ import annotations

from typing import NamedTuple

import psutil
import torch


class Memory(NamedTuple):
    """Bytes in use and in all: of a GPU; where the CPU computes, of this process and of the machine."""

    used: int
    total: int


def memory_of(device: torch.device) -> Memory:
    """The memory of a device at this moment."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total - free, total)
    return Memory(psutil.Process().memory_info().rss, psutil.virtual_memory().total)
