"""The loss for torch: what a server computes trains a model as what is computed in the same process."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import boxloss
import boxloss.torch
from boxloss.contract.words import BoxFormat, Reduction
from boxloss.torch import BoxLoss
from boxloss_server import losses
from boxloss_server.engine.formats import geometry_of
from tests.boxes import from_corners, random_boxes
from tests.distributed_step import Detector, batch
from tests.servers import ServerProcess, answered, free_port

ROOT = Path(__file__).parent.parent
LOSSES = [
    boxloss.CIoU(),
    boxloss.SmoothL1(),
    boxloss.Focaler(boxloss.GIoU()),
    boxloss.NWD(),
    boxloss.AlphaIoU(boxloss.EIoU()),
]
REDUCTIONS: list[Reduction] = ["none", "mean", "sum"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]

Loss = Callable[..., Tensor]


def pairs(count: int = 16, dtype: torch.dtype = torch.float64, box_format: BoxFormat = "xyxy") -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(count)
    boxes = [torch.tensor(from_corners(random_boxes(rng, count), box_format), dtype=dtype) for _ in range(2)]
    return boxes[0].requires_grad_(), boxes[1].requires_grad_()


def in_process(spec: boxloss.Loss, reduction: Reduction, weights: Tensor | float = 1.0) -> Loss:
    """The same loss without a service."""

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        values = losses.box_loss(predictions, targets, spec) * weights
        return values if reduction == "none" else getattr(values, reduction)()

    return loss


def slopes(loss: Loss, boxes: tuple[Tensor, Tensor], *more: Any) -> tuple[Tensor, ...]:
    """A loss, and the gradients of something computed from it."""
    value = loss(*boxes, *more)
    return value.detach(), *torch.autograd.grad((value.cos() * torch.arange(1, 1 + value.numel())).sum(), boxes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("spec", LOSSES, ids=lambda spec: spec.name)
def test_values_and_gradients_are_those_of_autograd(
    client: boxloss.Client, spec: boxloss.Loss, reduction: Reduction, weighted: bool, device: str
) -> None:
    first, second = (boxes.detach().to(device).requires_grad_() for boxes in pairs())
    weights = torch.linspace(0, 2, len(first), dtype=torch.float64, device=device) if weighted else None
    actual = slopes(BoxLoss(client, spec, reduction), (first, second), weights)
    expected = slopes(in_process(spec, reduction, 1.0 if weights is None else weights), (first, second))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("box_format", ["xywh", "cxcywh", "cxcywha_radians"])
def test_gradients_come_in_the_format_of_the_boxes(client: boxloss.Client, box_format: BoxFormat) -> None:
    def expected(predictions: Tensor, targets: Tensor) -> Tensor:
        return losses.evaluate(geometry_of(predictions.T, targets.T, box_format), boxloss.GIoU()).mean()

    first, second = pairs(box_format="cxcywh" if box_format == "cxcywha_radians" else box_format)
    if box_format == "cxcywha_radians":
        first, second = (
            nn.functional.pad(boxes.detach(), (0, 1), value=0.3).requires_grad_() for boxes in (first, second)
        )
    actual = BoxLoss(client, boxloss.GIoU(), box_format=box_format)
    torch.testing.assert_close(slopes(actual, (first, second)), slopes(expected, (first, second)))


def test_losses_that_need_the_image_get_it(client: boxloss.Client) -> None:
    boxes = pairs()
    actual = slopes(BoxLoss(client, boxloss.MPDIoU(), "sum", image_size=(640, 480)), boxes)

    def expected(predictions: Tensor, targets: Tensor) -> Tensor:
        return losses.box_loss(predictions, targets, boxloss.MPDIoU(), image_size=(640, 480)).sum()

    torch.testing.assert_close(actual, slopes(expected, boxes))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_agrees(client: boxloss.Client, reduction: Reduction) -> None:
    assert torch.autograd.gradcheck(BoxLoss(client, boxloss.DIoU(), reduction), pairs(4))


def test_a_training_step_is_one_call(server: ServerProcess, client: boxloss.Client) -> None:
    client.info()
    before = answered(server)
    BoxLoss(client, boxloss.CIoU())(*pairs()).backward()
    assert answered(server) == before + 1


def test_without_a_gradient_none_is_asked_for(client: boxloss.Client) -> None:
    predictions, targets = pairs()
    loss = BoxLoss(client, boxloss.CIoU())
    with torch.no_grad():
        assert not loss(predictions, targets).requires_grad
    value = loss(predictions, targets.detach())
    value.backward()
    assert value.requires_grad
    assert predictions.grad is not None
    assert targets.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_lower_precision_is_computed_in_float32(client: boxloss.Client, dtype: torch.dtype, autocast: bool) -> None:
    boxes = pairs(dtype=dtype)
    weights = torch.full((len(boxes[0]),), 1e-7)  # Half precision rounds this by a fifth.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = BoxLoss(client, boxloss.CIoU(), "sum")(*boxes, weights)
    (value * 1e7).backward()
    widened = [each.detach().float().requires_grad_() for each in boxes]
    expected = in_process(boxloss.CIoU(), "sum", weights)(*widened)
    torch.autograd.backward(expected * 1e7)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    for each, wide in zip(boxes, widened, strict=True):
        assert each.grad is not None
        assert wide.grad is not None
        torch.testing.assert_close(each.grad, wide.grad.to(dtype))


def test_boxes_of_two_types_get_gradients_of_their_own(client: boxloss.Client) -> None:
    first, second = pairs()
    narrow = first.detach().float().requires_grad_()
    loss = BoxLoss(client, boxloss.CIoU())(narrow, second)
    loss.backward()
    assert loss.dtype == torch.float64
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (0,)])
def test_no_pairs_are_a_zero_that_is_connected(
    client: boxloss.Client, reduction: Reduction, shape: tuple[int, ...]
) -> None:
    layer = nn.Linear(3, 4)
    predictions = layer(torch.empty(0, 3)).reshape(shape)
    loss = BoxLoss(client, boxloss.CIoU(), reduction)(predictions, torch.empty(0, 4)).sum()
    loss.backward()
    assert loss.item() == 0
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_masked_pairs_take_no_part(client: boxloss.Client) -> None:
    predictions, targets = pairs()
    with torch.no_grad():
        predictions[3] = torch.nan
        targets[5] = torch.tensor([4, 4, 0, 0])
    good = [row for row in range(len(predictions)) if row not in (3, 5)]
    value, *gradients = slopes(BoxLoss(client, boxloss.CIoU(), invalid="mask"), (predictions, targets))
    expected, *slope = slopes(
        in_process(boxloss.CIoU(), "mean"),
        (predictions[good].detach().requires_grad_(), targets[good].detach().requires_grad_()),
    )
    torch.testing.assert_close(value, expected)
    for gradient, other in zip(gradients, slope, strict=True):
        torch.testing.assert_close(gradient[good], other)
        assert not gradient[[3, 5]].any()
    assert BoxLoss(client, boxloss.CIoU(), "none", invalid="mask")(predictions, targets).isnan().nonzero().tolist() == [
        [3],
        [5],
    ]


def test_the_running_mean_is_a_buffer_that_training_moves(client: boxloss.Client) -> None:
    loss = BoxLoss(client, boxloss.WIoU(version=3, momentum=0.5))
    mean = loss.running_mean
    assert mean is not None
    expected = 1.0
    for count in (8, 12):
        boxes = pairs(count)
        iou = client.evaluate(*boxes, boxloss.IoU()).iou.mean()
        value = losses.box_loss(*boxes, loss.spec, running_mean=mean.item()).mean()
        torch.testing.assert_close(loss(*boxes), value)
        expected += 0.5 * (1 - iou - expected)
        assert mean.item() == pytest.approx(expected)
    loss.eval()
    loss(*pairs())
    assert mean.item() == pytest.approx(expected)

    other = BoxLoss(client, loss.spec)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.state_dict()["running_mean"], mean)
    assert not BoxLoss(client, boxloss.CIoU()).state_dict()


def test_a_copy_shares_the_client_and_nothing_else(client: boxloss.Client) -> None:
    loss = BoxLoss(client, boxloss.WIoU(version=2))
    other = copy.deepcopy(loss)
    loss(*pairs())
    assert other.running_mean == 1 != loss.running_mean
    other(*pairs())
    assert other.running_mean == loss.running_mean


def test_what_cannot_be_is_refused(client: boxloss.Client) -> None:
    predictions, targets = pairs()
    loss = BoxLoss(client, boxloss.CIoU())
    with pytest.raises(boxloss.InvalidInputError, match=r"weights: require a gradient.*detach"):
        loss(predictions, targets, torch.ones(len(predictions), requires_grad=True))
    with pytest.raises(boxloss.InvalidInputError, match="targets"):
        loss(predictions, targets[1:])
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(loss)
    with pytest.raises(ValueError, match="'in_process' or None"):
        BoxLoss(client, boxloss.CIoU(), fallback="always")  # type: ignore[arg-type]


async def test_an_asyncio_client_is_refused() -> None:
    async with boxloss.AsyncClient() as client:
        with pytest.raises(TypeError, match="blocking client"):
            BoxLoss(client, boxloss.CIoU())  # type: ignore[arg-type]


def test_it_is_differentiable_once(client: boxloss.Client) -> None:
    predictions, targets = pairs()
    loss = BoxLoss(client, boxloss.CIoU())(predictions, targets)
    (gradient,) = torch.autograd.grad(loss, predictions, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.norm().backward()


def trained(loss: Loss) -> tuple[list[float], list[Tensor]]:
    """The losses of a small regression step by step, and what was learned."""
    torch.manual_seed(0)
    features = torch.rand(32, 6, dtype=torch.float64)
    targets = torch.cat([features[:, :2], features[:, :2] + 0.5 + features[:, 2:4]], dim=1)
    model = nn.Linear(6, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(60):
        corner, size = model(features).split(2, dim=1)
        value = loss(torch.cat([corner, corner + nn.functional.softplus(size)], dim=1), targets)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        values.append(value.item())
    return values, [parameter.detach() for parameter in model.parameters()]


def test_training_converges_as_in_process(client: boxloss.Client) -> None:
    values, learned = trained(BoxLoss(client, boxloss.CIoU()))  # The one line that changes.
    expected, learned_there = trained(in_process(boxloss.CIoU(), "mean"))
    assert values[-1] < values[0] / 4
    assert values == pytest.approx(expected)
    torch.testing.assert_close(learned, learned_there)


def test_two_processes_train_as_one(server: ServerProcess, client: boxloss.Client, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_step", server.address, str(tmp_path / "meet"), str(rank), "2"],
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in processes]
    alone = Detector(client)
    alone(*batch()).backward()
    for process, (printed, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        for gradient, parameter in zip(json.loads(printed), alone.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), parameter.grad)


def test_without_a_fallback_a_killed_server_is_an_error() -> None:
    with ServerProcess() as server, boxloss.Client(server.address, timeout=1) as client:
        loss = BoxLoss(client, boxloss.CIoU())
        loss(*pairs())
        server.kill()
        with pytest.raises(boxloss.ServerUnavailableError):
            loss(*pairs())


def test_with_a_fallback_training_goes_on_and_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    boxes = pairs()
    with ServerProcess(f"--port={port}") as server, boxloss.Client(server.address, timeout=1) as client:
        loss = BoxLoss(client, boxloss.CIoU(), fallback="in_process")
        expected = slopes(loss, boxes)
        assert loss.computed_in_process == 0
        server.kill()
        for calls in (1, 2, 3):
            torch.testing.assert_close(slopes(loss, boxes), expected)
            assert loss.computed_in_process == calls
        with pytest.raises(boxloss.InvalidInputError, match="targets"):
            loss(boxes[0], boxes[1][1:])

        monkeypatch.setattr(boxloss.torch, "_ASK_AGAIN_S", 0.0)
        monkeypatch.setattr(loss._service, "_ask_again", 0.0)
        loss(*boxes)  # It asks in vain.
        assert loss.computed_in_process == 5
        assert caplog.text.count("losses are computed in this process") == 1
        with ServerProcess(f"--port={port}") as restarted:
            client.info(timeout=30)
            torch.testing.assert_close(slopes(loss, boxes), expected)
            assert loss.computed_in_process == 5
            assert answered(restarted) == 1
            restarted.kill()
            loss(*boxes)
        assert caplog.text.count("losses are computed in this process") == 2


def test_the_fallback_needs_the_server_package(client: boxloss.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boxloss_server", None)
    with pytest.raises(boxloss.BoxlossError, match="pip install"):
        BoxLoss(client, boxloss.CIoU(), fallback="in_process")


def test_the_page_runs(server: ServerProcess) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    exec(compile(code.replace("localhost:50051", server.address), "training.md", "exec"), {})
