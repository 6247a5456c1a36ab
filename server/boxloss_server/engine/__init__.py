"""The engine: one batch of box pairs on one device. Knows torch, no asyncio and no gRPC."""

from boxloss_server.engine.engine import Engine
from boxloss_server.engine.formats import layout_of
from boxloss_server.engine.pairs import Evaluation, Grid, Matrix, Pairs, Score, Scores

__all__ = ["Engine", "Evaluation", "Grid", "Matrix", "Pairs", "Score", "Scores", "layout_of"]
