"""boxloss: bounding-box regression losses, their gradients and IoU matrices, from a server.

>>> import boxloss
>>> with boxloss.Client("localhost:50051") as client:
...     result = client.evaluate([[0, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU(), gradients=True)
>>> result.loss, result.gradient, result.iou
"""

from boxloss.aio import AsyncClient
from boxloss.client import Client
from boxloss.embedded import embedded
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    RequestTooLargeError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
    UnsupportedError,
    Violation,
)
from boxloss.losses import AlphaIoU, CIoU, DIoU, EIoU, FocalEIoU, GIoU, IoU, Loss, SmoothL1
from boxloss.results import Execution, LossInfo, LossResult, ParameterInfo, ServerInfo

__version__ = "0.1.0"

__all__ = [
    "AlphaIoU",
    "AsyncClient",
    "BoxlossError",
    "CIoU",
    "Client",
    "DIoU",
    "DeadlineExceededError",
    "EIoU",
    "Execution",
    "FocalEIoU",
    "GIoU",
    "InvalidInputError",
    "IoU",
    "Loss",
    "LossInfo",
    "LossResult",
    "ParameterInfo",
    "RequestTooLargeError",
    "ServerBusyError",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
    "SmoothL1",
    "UnsupportedError",
    "Violation",
    "embedded",
]
