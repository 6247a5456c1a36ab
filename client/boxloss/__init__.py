"""boxloss: bounding-box regression losses, their gradients and IoU matrices, from a server.

>>> import boxloss
>>> with boxloss.Client("localhost:50051") as client:
...     result = client.evaluate([[0, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU(), gradients=True)
>>> result.loss, result.gradient, result.iou

`boxloss.torch` is for training, `boxloss.audit` finds wrong labels, `boxloss.compare` tells which loss suits your
boxes, `boxloss.files` reads and writes the files of labeling tools, `boxloss.metrics` is for Prometheus.
`boxloss.losses` and `boxloss.errors` hold all losses and errors, `boxloss.v1` the messages of the contract. Other
modules are internal.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from boxloss.calls.aio import AsyncClient
from boxloss.calls.client import Client
from boxloss.calls.embedded import embedded
from boxloss.calls.results import Execution, LossInfo, LossResult, ParameterInfo, ServerInfo
from boxloss.connection.credentials import Tls
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    OutOfMemoryError,
    QuotaExceededError,
    RequestTooLargeError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
    UnauthenticatedError,
    UnsupportedError,
    Violation,
)
from boxloss.losses import Loss
from boxloss.losses import coordinates as _coordinates
from boxloss.losses import iou as _iou
from boxloss.losses import modifiers as _modifiers
from boxloss.losses import oriented as _oriented
from boxloss.losses.coordinates import *
from boxloss.losses.iou import *
from boxloss.losses.modifiers import *
from boxloss.losses.oriented import *

if TYPE_CHECKING:
    from boxloss import audit as audit
    from boxloss import compare as compare
    from boxloss import errors as errors
    from boxloss import files as files
    from boxloss import losses as losses
    from boxloss import metrics as metrics
    from boxloss import torch as torch
    from boxloss import v1 as v1

__version__ = "0.1.0"

_MODULES = ("audit", "compare", "errors", "files", "losses", "metrics", "torch", "v1")

__all__ = [
    "AsyncClient",
    "BoxlossError",
    "Client",
    "DeadlineExceededError",
    "Execution",
    "InvalidInputError",
    "Loss",
    "LossInfo",
    "LossResult",
    "OutOfMemoryError",
    "ParameterInfo",
    "QuotaExceededError",
    "RequestTooLargeError",
    "ServerBusyError",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
    "Tls",
    "UnauthenticatedError",
    "UnsupportedError",
    "Violation",
    "embedded",
]
__all__ += _coordinates.__all__
__all__ += _iou.__all__
__all__ += _modifiers.__all__
__all__ += _oriented.__all__


if not TYPE_CHECKING:  # Type checkers are to miss what is not there.

    def __getattr__(name: str) -> Any:
        """Imports a public module when it is first asked for: some need packages of an extra."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """What is for users."""
    return sorted([*__all__, *_MODULES, "__doc__", "__version__"])
