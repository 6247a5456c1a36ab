"""A loss for torch that a server computes: the one line of a training step that changes.

>>> loss = BoxLoss(boxloss.Client("localhost:50051"), boxloss.CIoU())
>>> loss(model(images), targets).backward()
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
import weakref
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from boxloss.calls.client import Client
from boxloss.calls.embedded import embedded
from boxloss.calls.results import LossResult
from boxloss.contract.words import BoxFormat, Invalid, Reduction
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    ServerBusyError,
    ServerUnavailableError,
    Violation,
)
from boxloss.losses import Loss

__all__ = ["BoxLoss"]

_ASK_AGAIN_S = 60.0
"""How long a server that is out of reach is left alone, where this process computes instead."""
_RETRY_TIMEOUT_S = 1.0
"""How long it may then take to answer; training waits for it."""

_log = logging.getLogger(__name__)


class BoxLoss(nn.Module):
    """A loss over pairs of boxes, as a module whose result back-propagates to predictions and targets.

    A forward pass is one call; it brings the gradients, so that the backward pass makes none. They come in the boxes'
    own type and on their device; differentiating them again raises RuntimeError. A module may be shared between threads
    as its client may. Copies share the client; pickling raises TypeError, `state_dict` works.

    Args:
        client: whose server computes; it stays yours to close. After a fork, create another.
        spec: what to compute, for example `boxloss.CIoU()`.
        reduction: "none", "mean" (over the pairs, not over the sum of the weights) or "sum".
        box_format: as in `Client.evaluate`.
        image_size: width and height of the image, for losses that need it.
        invalid: "reject" a call with bad boxes, or "mask" their pairs: NaN loss, zero gradient, no part in a reduction.
        fallback: "in_process" to compute in this process while the server is out of reach; needs boxloss-server.
            It starts after the client's timeout, with a warning in the log, and asks the server again every minute.

    Attributes:
        running_mean: for losses that need it, the mean of 1 - IoU over the calls made in training mode, a buffer; None
            for all others.

    Raises:
        TypeError: the client is no `boxloss.Client`.
        ValueError: the fallback is not known.
        BoxlossError: the fallback needs boxloss-server, which is not installed.
    """

    running_mean: Tensor | None

    def __init__(
        self,
        client: Client,
        spec: Loss,
        reduction: Reduction = "mean",
        *,
        box_format: BoxFormat = "xyxy",
        image_size: tuple[float, float] | None = None,
        invalid: Invalid = "reject",
        fallback: Literal["in_process"] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.reduction = reduction
        self.box_format = box_format
        self.image_size = image_size
        self.invalid = invalid
        self._service = _Service(client, fallback)
        self.register_buffer("running_mean", torch.tensor(1.0) if "running_mean" in spec.needed else None)

    @property
    def computed_in_process(self) -> int:
        """Forward passes, of this module and its copies, that this process has computed in the server's place."""
        return self._service.computed_in_process

    def forward(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss: of shape (), or (N,) where nothing is reduced; in float32, or float64 where boxes are float64.

        Args:
            predictions: boxes of shape (N, 4), or (N, 5) or (N, 8) where the format says so. N may be 0.
            targets: one for each prediction, of the same shape.
            weights: one finite number of 0 or more for each pair; they get no gradient.

        Raises:
            InvalidInputError: the input is wrong, or the weights require a gradient.
            BoxlossError: as `Client.evaluate`.
        """
        if weights is not None and weights.requires_grad:
            fix = 'detach them, or multiply the losses of reduction "none" by them'
            raise InvalidInputError(
                [Violation("weights", f"require a gradient, which the server does not give; {fix}")]
            )
        differentiable = torch.is_grad_enabled()
        result = self._service.evaluate(
            _full(predictions),
            _full(targets),
            self.spec,
            gradients=differentiable and predictions.requires_grad,
            target_gradients=differentiable and targets.requires_grad,
            box_format=self.box_format,
            weights=weights,
            reduction=self.reduction,
            invalid=self.invalid,
            image_size=self.image_size,
            running_mean=None if self.running_mean is None else float(self.running_mean),
        )
        if self.training and self.running_mean is not None and result.running_mean is not None:
            self.running_mean.fill_(result.running_mean)
        loss: Tensor = _Evaluated.apply(predictions, targets, result)  # type: ignore[no-untyped-call]
        return loss

    def extra_repr(self) -> str:
        return f"{self.spec}, reduction={self.reduction!r}, box_format={self.box_format!r}"


def _full(boxes: Tensor) -> Tensor:
    """Half precision as float32, so that the weights are not rounded to it."""
    return boxes.detach().float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes


class _Evaluated(torch.autograd.Function):
    """A loss whose gradients came with it."""

    @staticmethod
    def forward(ctx: FunctionCtx, predictions: Tensor, targets: Tensor, result: LossResult) -> Tensor:
        gradients = [
            None if gradient is None else torch.tensor(gradient, device=boxes.device)
            for boxes, gradient in ((predictions, result.gradient), (targets, result.target_gradient))
        ]
        ctx.save_for_backward(predictions, targets, *gradients)  # type: ignore[arg-type]
        return torch.tensor(result.loss, device=predictions.device)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        predictions, targets, *gradients = ctx.saved_tensors
        return *(
            None if gradient is None else _Gradient.apply(boxes, gradient, upstream)  # type: ignore[no-untyped-call]
            for boxes, gradient in zip((predictions, targets), gradients, strict=True)
        ), None


class _Gradient(torch.autograd.Function):
    """A gradient by the chain rule. It depends on the boxes, but the server does not say how: it has no gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, boxes: Tensor, gradient: Tensor, upstream: Tensor) -> Tensor:
        rows = upstream.to(gradient.device)[..., None]
        return (rows * gradient).to(boxes.dtype).reshape(boxes.shape)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> NoReturn:
        raise RuntimeError("BoxLoss is differentiable once: a server gives no second derivatives")


class _Service:
    """Who computes: the client's server or, where asked for and while that is out of reach, one in this process."""

    def __init__(self, client: Client, fallback: str | None) -> None:
        if not isinstance(client, Client):
            raise TypeError(f"{client!r} is no boxloss.Client; BoxLoss needs the blocking client")
        if fallback not in (None, "in_process"):
            raise ValueError(f"fallback {fallback!r} is not known; use 'in_process' or None")
        if fallback and importlib.util.find_spec("boxloss_server") is None:
            raise BoxlossError("the fallback 'in_process' needs boxloss-server: pip install 'boxloss[embedded]'")
        self._client = client
        self._falls_back = fallback is not None
        self._lock = threading.Lock()
        self._substitute: Client | None = None
        self._away = False
        self._ask_again = 0.0
        self.computed_in_process = 0

    def evaluate(self, predictions: Tensor, targets: Tensor, spec: Loss, **options: Any) -> LossResult:
        if not self._falls_back:
            return self._client.evaluate(predictions, targets, spec, **options)
        if not self._away or time.monotonic() >= self._ask_again:
            try:
                timeout = _RETRY_TIMEOUT_S if self._away else None
                result = self._client.evaluate(predictions, targets, spec, **options, timeout=timeout)
            except (ServerUnavailableError, DeadlineExceededError, ServerBusyError) as error:
                if not (self._away or isinstance(error, ServerUnavailableError)):
                    raise
                self._leave(error)
            else:
                self._return()
                return result
        return self._in_process(predictions.device).evaluate(predictions, targets, spec, **options)

    def _leave(self, error: BoxlossError) -> None:
        with self._lock:
            if not self._away:
                _log.warning("%s; losses are computed in this process until the server answers", error)
            self._away = True
            self._ask_again = time.monotonic() + _ASK_AGAIN_S

    def _return(self) -> None:
        if self._away:
            with self._lock:
                self._away = False
            _log.info("%s answers again; losses are computed there", self._client.address)

    def _in_process(self, device: torch.device) -> Client:
        with self._lock:
            if self._substitute is None:
                self._substitute = embedded(device=str(device) if device.type == "cuda" else "cpu")
                weakref.finalize(self, self._substitute.close)
            self.computed_in_process += 1
            return self._substitute

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("BoxLoss does not pickle, for its client is a connection; save its state_dict() instead")
