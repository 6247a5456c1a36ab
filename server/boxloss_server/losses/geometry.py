"""The geometry of box pairs: every quantity that losses share, computed once, when first asked for."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from boxloss.losses.coordinates import Coordinates


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Part / whole, and 0 where whole is 0 or too small for its reciprocal to be finite.

    The denominator is guarded before the division: masking afterwards would leave NaN in the gradient.
    """
    divisible = whole >= torch.finfo(whole.dtype).tiny
    return torch.where(divisible, part / torch.where(divisible, whole, 1), 0)


def power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Base ** exponent for base > 0; elsewhere 0, or 1 for an exponent of 0, with gradient 0: rounding can bring a
    penalty just below 0, and below an exponent of 1 the slope at 0 is infinite.
    """
    positive = base > 0
    return torch.where(positive | (exponent == 0), torch.where(positive, base, 1) ** exponent, 0)


class Geometry:
    """Pairs of axis-aligned boxes, as corner coordinates.

    Args:
        prediction: left, top, right and bottom of the predictions: a tensor of shape (4, ...).
        target: the same of the targets; the shapes of the planes broadcast, so (4, N, 1) against (4, 1, M) gives all
            pairs.
        squared_image_diagonal: for losses that need the image's size.
        running_mean: of 1 - IoU, for losses that need it.

    Boxes must not be inverted and their areas must be finite in the tensors' type.
    """

    def __init__(
        self,
        prediction: Tensor,
        target: Tensor,
        squared_image_diagonal: Tensor | float = math.nan,
        running_mean: Tensor | float = math.nan,
    ) -> None:
        self._left, self._top, self._right, self._bottom = prediction.unbind()
        self._target_left, self._target_top, self._target_right, self._target_bottom = target.unbind()
        self.squared_image_diagonal = squared_image_diagonal
        self.running_mean = running_mean

    def differences(self, coordinates: Coordinates) -> Tensor:
        """Prediction minus target in four coordinates, shape (4, ...)."""
        left, right = self._left - self._target_left, self._right - self._target_right
        top, bottom = self._top - self._target_top, self._bottom - self._target_bottom
        if coordinates == "corners":
            return torch.stack([left, top, right, bottom])
        return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])

    def scaled(self, factor: float) -> Geometry:
        """The pairs with all boxes scaled about their own centers."""
        boxes = (
            (self._left, self._top, self._right, self._bottom),
            (self._target_left, self._target_top, self._target_right, self._target_bottom),
        )
        return Geometry(*(torch.stack(_scaled(*box, factor)) for box in boxes))

    @cached_property
    def width(self) -> Tensor:
        return self._right - self._left

    @cached_property
    def height(self) -> Tensor:
        return self._bottom - self._top

    @cached_property
    def area(self) -> Tensor:
        return self.width * self.height

    @cached_property
    def target_width(self) -> Tensor:
        return self._target_right - self._target_left

    @cached_property
    def target_height(self) -> Tensor:
        return self._target_bottom - self._target_top

    @cached_property
    def intersection(self) -> Tensor:
        """Area that both boxes cover; boxes that only touch do not overlap, and have no gradient here."""
        width = torch.minimum(self._right, self._target_right) - torch.maximum(self._left, self._target_left)
        height = torch.minimum(self._bottom, self._target_bottom) - torch.maximum(self._top, self._target_top)
        # Not clamp(min=0): its gradient at exactly 0 differs between torch releases.
        return torch.where((width > 0) & (height > 0), width * height, 0)

    @cached_property
    def union(self) -> Tensor:
        return self.area + self.target_width * self.target_height - self.intersection

    @cached_property
    def iou(self) -> Tensor:
        return ratio(self.intersection, self.union)

    @cached_property
    def enclosing_width(self) -> Tensor:
        return torch.maximum(self._right, self._target_right) - torch.minimum(self._left, self._target_left)

    @cached_property
    def enclosing_height(self) -> Tensor:
        return torch.maximum(self._bottom, self._target_bottom) - torch.minimum(self._top, self._target_top)

    @cached_property
    def uncovered(self) -> Tensor:
        """Share of the enclosing box that neither box covers."""
        enclosing = self.enclosing_width * self.enclosing_height
        return ratio(enclosing - self.union, enclosing)

    @cached_property
    def dx(self) -> Tensor:
        """Offset of the centers. Differences first: identical boxes are then exactly 0 apart."""
        return ((self._left - self._target_left) + (self._right - self._target_right)) / 2

    @cached_property
    def dy(self) -> Tensor:
        return ((self._top - self._target_top) + (self._bottom - self._target_bottom)) / 2

    @cached_property
    def squared_distance(self) -> Tensor:
        """Of the centers."""
        return self.dx**2 + self.dy**2

    @cached_property
    def squared_diagonal(self) -> Tensor:
        """Of the enclosing box."""
        return self.enclosing_width**2 + self.enclosing_height**2

    @cached_property
    def distance(self) -> Tensor:
        """Squared distance of the centers over the squared diagonal of the enclosing box."""
        return ratio(self.squared_distance, self.squared_diagonal)

    @cached_property
    def relative_differences(self) -> tuple[Tensor, Tensor]:
        """Differences of the widths and of the heights, each over the larger of the two."""
        return (
            ratio((self.width - self.target_width).abs(), torch.maximum(self.width, self.target_width)),
            ratio((self.height - self.target_height).abs(), torch.maximum(self.height, self.target_height)),
        )

    @cached_property
    def edge_difference(self) -> Tensor:
        """Mean distance of the edges, over the target's width or height."""
        left, top, right, bottom = self.differences("corners").abs()
        return (ratio(left + right, self.target_width) + ratio(top + bottom, self.target_height)) / 4

    @cached_property
    def aspect_difference(self) -> Tensor:
        """CIoU's v: the squared difference of the diagonals' angles, 1 for a right angle."""
        difference = _angle(self.target_width, self.target_height) - _angle(self.width, self.height)
        return (4 / math.pi**2) * difference**2


def _angle(width: Tensor, height: Tensor) -> Tensor:
    """Angle between the diagonal and the vertical side; 0 with gradient 0 for a point.

    The sides are scaled first, since the gradient of atan2 squares them, which underflows for tiny boxes.
    """
    longest = torch.maximum(width, height).detach()
    return torch.atan2(ratio(width, longest), ratio(height, longest))


def _scaled(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor, factor: float) -> list[Tensor]:
    x, y = (left + right) / 2, (top + bottom) / 2
    width, height = (right - left) * (factor / 2), (bottom - top) * (factor / 2)
    return [x - width, y - height, x + width, y + height]
