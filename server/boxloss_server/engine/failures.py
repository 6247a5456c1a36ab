"""What the errors of torch mean."""

from __future__ import annotations

import torch

from boxloss.errors import ServerUnavailableError

_NO_MEMORY = "out of memory", "can't allocate memory"
"""How CUDA, of memory of the host, and the CPU's allocator say it: by errors that have no type of their own."""


class DeviceLostError(ServerUnavailableError):
    """The device computes nothing more in this process."""


def lacks_memory(error: Exception) -> bool:
    """Whether less at once might succeed."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def loses_device(error: Exception) -> bool:
    """Whether the device cannot be relied on any more: most errors of CUDA fail every call after them, too."""
    return not lacks_memory(error) and (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error))
