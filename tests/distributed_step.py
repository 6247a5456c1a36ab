"""One process of several that train a model together, started by a test: prints its gradients as JSON."""

from __future__ import annotations

import json
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import boxloss
from boxloss.torch import BoxLoss


class Detector(nn.Module):
    """A linear layer that predicts boxes, and their loss.

    Args:
        client: whose server computes the loss.
    """

    def __init__(self, client: boxloss.Client) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 4, dtype=torch.float64)
        self.loss = BoxLoss(client, boxloss.WIoU(version=3), box_format="cxcywh")

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.loss(self.head(features).exp(), targets)
        return loss


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of eight boxes, and the boxes."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 6, generator=generator, dtype=torch.float64), 1 + torch.rand(
        8, 4, generator=generator, dtype=torch.float64
    )


def main(address: str, rendezvous: str, rank: int, size: int) -> None:
    """Trains one step on this process's share of the batch."""
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    with boxloss.Client(address) as client:
        model = DistributedDataParallel(Detector(client))
        features, targets = batch()
        model(features[rank::size], targets[rank::size]).backward()
        print(json.dumps([parameter.grad.tolist() for parameter in model.parameters() if parameter.grad is not None]))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
