"""boxloss: bounding-box regression losses, their gradients and IoU matrices, from a server.

>>> import boxloss
>>> with boxloss.Client("localhost:50051") as client:
...     result = client.evaluate([[0, 0, 4, 4]], [[1, 2, 5, 8]], boxloss.CIoU(), gradients=True)
>>> result.loss, result.gradient, result.iou
"""

from boxloss.aio import AsyncClient
from boxloss.client import Client
from boxloss.credentials import Tls
from boxloss.embedded import embedded
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
from boxloss.losses import (
    BCD,
    GWD,
    KLD,
    L1,
    L2,
    NWD,
    AlphaIoU,
    BalancedL1,
    BoundedIoU,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    Focaler,
    GIoU,
    Huber,
    Inner,
    IoU,
    KFIoU,
    Loss,
    MPDIoU,
    PIoU,
    PIoUv2,
    ProbIoU,
    ShapeIoU,
    SIoU,
    SmoothL1,
    WIoU,
)
from boxloss.results import Execution, LossInfo, LossResult, ParameterInfo, ServerInfo

__version__ = "0.1.0"

__all__ = [
    "AlphaIoU",
    "AsyncClient",
    "BCD",
    "BalancedL1",
    "BoundedIoU",
    "BoxlossError",
    "CIoU",
    "Client",
    "DIoU",
    "DeadlineExceededError",
    "EIoU",
    "Execution",
    "Focal",
    "FocalEIoU",
    "Focaler",
    "GIoU",
    "GWD",
    "Huber",
    "Inner",
    "InvalidInputError",
    "IoU",
    "KFIoU",
    "KLD",
    "L1",
    "L2",
    "Loss",
    "LossInfo",
    "LossResult",
    "MPDIoU",
    "NWD",
    "OutOfMemoryError",
    "PIoU",
    "PIoUv2",
    "ParameterInfo",
    "ProbIoU",
    "QuotaExceededError",
    "RequestTooLargeError",
    "SIoU",
    "ServerBusyError",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
    "ShapeIoU",
    "SmoothL1",
    "Tls",
    "UnauthenticatedError",
    "UnsupportedError",
    "Violation",
    "WIoU",
    "embedded",
]
