"""The engine: one batch of box pairs on one device. Knows torch, no asyncio and no gRPC."""

from boxloss_server.engine.engine import Engine, find_device
from boxloss_server.engine.failures import DeviceLostError
from boxloss_server.engine.kernels import Kernels
from boxloss_server.engine.memory import memory_of
from boxloss_server.engine.pairs import Evaluation, Grid, Matrix, Pairs, Score, Scores

__all__ = [
    "DeviceLostError",
    "Engine",
    "Evaluation",
    "Grid",
    "Kernels",
    "Matrix",
    "Pairs",
    "Score",
    "Scores",
    "find_device",
    "memory_of",
]
