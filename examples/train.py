"""Trains a small model with a loss that a server computes. One line differs from training without a server.

Run it with `python examples/train.py [HOST:PORT]`; without an address, a server starts inside the process.
"""

import sys

import torch
from torch import nn

import boxloss
from boxloss.torch import BoxLoss

client = boxloss.Client(sys.argv[1]) if len(sys.argv) > 1 else boxloss.embedded()

torch.manual_seed(0)
features = torch.rand(64, 8)
corners, sides = features[:, :2] * 5, features[:, 2:4] * 4 + 1
targets = torch.cat([corners, corners + sides], dim=1)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

# box_loss = nn.SmoothL1Loss(reduction="sum")  # Before: computed in this process.
box_loss = BoxLoss(client, boxloss.SmoothL1(), "sum")  # After: by a server, which has CIoU and many more, too.

with client:
    for step in range(201):
        corners, sides = model(features).split(2, dim=1)
        predictions = torch.cat([corners, corners + nn.functional.softplus(sides)], dim=1)
        loss = box_loss(predictions, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
