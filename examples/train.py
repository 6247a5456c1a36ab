"""Fits boxes to targets with a loss that a server computes, and with the same loss computed in this process.

Run it with boxloss-server installed: `python examples/train.py`, or `python examples/train.py HOST:PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import boxloss
from boxloss.torch import BoxLoss
from boxloss_server import losses


def train(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Trains a small model; returns its last loss."""
    torch.manual_seed(0)
    features = torch.rand(64, 8)
    targets = torch.cat([features[:, :2] * 50, features[:, :2] * 50 + 10 + features[:, 2:4] * 40], dim=1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        corner, size = model(features).split(2, dim=1)
        predictions = torch.cat([corner * 50, corner * 50 + 40 * nn.functional.softplus(size)], dim=1)
        value = loss(predictions, targets)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return value.item()


with boxloss.Client(sys.argv[1]) if len(sys.argv) > 1 else boxloss.embedded() as client:
    print(f"by the service   {train(BoxLoss(client, boxloss.CIoU())):.4f}")
print(f"in this process  {train(lambda p, t: losses.box_loss(p, t, boxloss.CIoU()).mean()):.4f}")
