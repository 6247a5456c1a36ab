"""The geometry of oriented boxes: convex quadrilaterals, as planes x0, y0, ..., x3, y3 of shape (8, ...).

Everything is elementwise over the planes, so that pairs in any number and arrangement take the same operations.
Vectors are planes of x and y, of shape (2, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from boxloss_server.losses.geometry import power, ratio

_Vector: TypeAlias = Tensor | Sequence[Tensor]


def rectangle_corners(boxes: Tensor) -> Tensor:
    """Corners of rectangles; the first edge is along the width.

    Args:
        boxes: center x, center y, width, height and angle, of shape (5, ...). Angles are in radians, from the x axis
            towards the y axis.

    Returns:
        Planes of shape (8, ...); at angle 0 left top, right top, right bottom and left bottom.
    """
    x, y, width, height, angle = boxes.unbind()
    center, cos, sin = torch.stack([x, y]), angle.cos(), angle.sin()
    u, v = torch.stack([cos, sin]) * width / 2, torch.stack([-sin, cos]) * height / 2
    return torch.cat([center - u - v, center + u - v, center + u + v, center - u + v])


def area(corners: Tensor) -> Tensor:
    """Area, shape (...); negative where the corners run from the y axis towards the x axis."""
    # At two opposite corners: in the product of the diagonals digits cancel for long, thin boxes.
    return (_cross(*_legs(corners, 1)) + _cross(*_legs(corners, 3))) / 2


def wound_alike(corners: Tensor) -> Tensor:
    """The corners such that they run from the x axis towards the y axis; the first edge stays the first."""
    return torch.where(area(corners) < 0, corners[[2, 3, 0, 1, 6, 7, 4, 5]], corners)


def intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Area that both cover, shape (...); the corners of both must run from the x axis towards the y axis.

    b is cut into two triangles, and each is the frame in which its overlap with a is an integral along the edges of a.
    That does not look for the corners of the overlap, so no edges are too parallel and no corners too close for it.
    The error is of the order of rounding, relative to the larger box.
    """
    overlap = _overlap_with_corner(a, b, 1) + _overlap_with_corner(a, b, 3)
    # Not left to rounding: a root, as of a focal loss, would make much of it.
    return torch.where((overlap > 0) & ~_divides(a, b) & ~_divides(b, a), overlap, 0)


class OrientedGeometry:
    """Pairs of oriented boxes, as corner coordinates.

    The losses that are defined for boxes of either kind find the same quantities here as in `Geometry`; the losses of
    boxes as Gaussians find theirs. A box's Gaussian has the covariance (u u^T + v v^T) / 4, where u and v are the means
    of opposite edges; for a rectangle that is R diag(w^2 / 4, h^2 / 4) R^T. All is computed from cross products of the
    half axes, u / 2 and v / 2: in products of covariances, digits cancel for long, thin boxes.

    Args:
        prediction: x0, y0, ..., x3, y3 of convex quadrilaterals, in either direction: a tensor of shape (8, ...).
        target: the same of the targets; the shapes of the planes broadcast, so (8, N, 1) against (8, 1, M) gives all
            pairs.

    Areas must be finite in the tensors' type. Quotients whose squares would not be are bounded, so that the losses of
    boxes that are very far apart, or very unlike, are finite; at the bound they have no gradient.
    """

    def __init__(self, prediction: Tensor, target: Tensor) -> None:
        self._prediction, self._target = wound_alike(prediction), wound_alike(target)

    @cached_property
    def area(self) -> Tensor:
        return area(self._prediction)

    @cached_property
    def target_area(self) -> Tensor:
        return area(self._target)

    @cached_property
    def intersection(self) -> Tensor:
        """Area that both boxes cover."""
        return intersection_area(self._prediction, self._target)

    @cached_property
    def union(self) -> Tensor:
        return self.area + self.target_area - self.intersection

    @cached_property
    def iou(self) -> Tensor:
        return ratio(self.intersection, self.union)

    @cached_property
    def uncovered(self) -> Tensor:
        """Share of the enclosing rectangle that neither box covers."""
        width, height = self._enclosing_sides
        return ratio(width * height - self.union, width * height)

    @cached_property
    def distance(self) -> Tensor:
        """Squared distance of the centers over the squared diagonal of the enclosing rectangle."""
        return ratio(_dot(self.offset, self.offset), _dot(self._enclosing_sides, self._enclosing_sides))

    @cached_property
    def offset(self) -> Tensor:
        """Vector from the target's center to the prediction's, a box's center being the mean of its corners."""
        difference = self._prediction - self._target
        return torch.stack([difference[0::2].mean(0), difference[1::2].mean(0)])

    @cached_property
    def _enclosing_sides(self) -> Tensor:
        """Sides, shape (2, ...), of the smaller of the enclosing rectangles that are aligned with one box."""
        sides, target_sides = (self._extents(box) for box in (self._prediction, self._target))
        return torch.where(sides.prod(0) <= target_sides.prod(0), sides, target_sides)

    def _extents(self, box: Tensor) -> Tensor:
        """Lengths that the pairs take up along the first edges of boxes and across, shape (2, ...)."""
        x, y = _unit(_corner(box, 1) - _corner(box, 0))
        return torch.stack([self._extent((x, y)), self._extent((-y, x))])

    def _extent(self, direction: _Vector) -> Tensor:
        # Seen from a corner of the pair, so that no digits are lost to where the pair is.
        boxes = (_seen_from(_corner(self._target, 0), box) for box in (self._prediction, self._target))
        reach, target_reach = (_dot(box, direction) for box in boxes)
        far = torch.maximum(reach.amax(0), target_reach.amax(0))
        return far - torch.minimum(reach.amin(0), target_reach.amin(0))

    @cached_property
    def size_ratio(self) -> Tensor:
        """Root of the ratio of prediction's area to target's, the fourth root of det P / det T; that of the rounding
        error of 1 where a box has no area, so that the Gaussians differ as much as can be told.
        """
        solid = (self._size > 0) & (self._target_size > 0)
        most = _most(self.area)
        bounded = _bounded_ratio(self._size, self._target_size, most).clamp(1 / most)
        return torch.where(solid, bounded, torch.finfo(self.area.dtype).eps ** 0.5)

    @cached_property
    def size_difference(self) -> Tensor:
        """The sum r + 1 / r - 2, for the ratio r of the areas."""
        return (self.size_ratio - 1 / self.size_ratio) ** 2

    @cached_property
    def shape_difference(self) -> Tensor:
        """tr(P^-1 T) - 2, for Gaussians scaled to the same area."""
        return self._shape_difference(self._size, self._target_size)

    @cached_property
    def prediction_shape_difference(self) -> Tensor:
        """The same in the prediction's units, over the ratio of the areas."""
        return self._shape_difference(self._size, self._size)

    @cached_property
    def target_shape_difference(self) -> Tensor:
        """The same in the target's units, times the ratio of the areas."""
        return self._shape_difference(self._target_size, self._target_size)

    def _shape_difference(self, size: Tensor, other_size: Tensor) -> Tensor:
        (u, v), (target_u, target_v) = self._half_axes, self._target_half_axes
        stretch, shear = _cross(u, target_v) - _cross(target_u, v), _cross(v, target_v) - _cross(u, target_u)
        return _squared_ratio(stretch, size, other_size) + _squared_ratio(shear, size, other_size)

    @cached_property
    def prediction_offset(self) -> Tensor:
        """Squared distance of the centers in the prediction's units, m^T P^-1 m."""
        return self._offset(self._half_axes, self._size, self._size)

    @cached_property
    def target_offset(self) -> Tensor:
        """Squared distance of the centers in the target's units, m^T T^-1 m."""
        return self._offset(self._target_half_axes, self._target_size, self._target_size)

    @cached_property
    def common_offset(self) -> Tensor:
        """Squared distance of the centers in the units of both, m^T (r P^-1 + T^-1 / r) m."""
        sizes = self._size, self._target_size
        return self._offset(self._half_axes, *sizes) + self._offset(self._target_half_axes, *sizes)

    def _offset(self, axes: tuple[Tensor, Tensor], size: Tensor, other_size: Tensor) -> Tensor:
        u, v = axes
        return _squared_ratio(_cross(self.offset, u), size, other_size) + _squared_ratio(
            _cross(self.offset, v), size, other_size
        )

    @cached_property
    def wasserstein(self) -> Tensor:
        """Squared Wasserstein distance of the Gaussians.

        The part of the covariances is the squared distance of the half axes, once a rotation has mixed the target's so
        that they come nearest to the prediction's. As none comes nearer, the rotation is constant in the gradient.
        """
        (u, v), (target_u, target_v) = self._half_axes, self._target_half_axes
        aligned = torch.stack([_dot(target_u, u) + _dot(target_v, v), _dot(target_v, u) - _dot(target_u, v)])
        cos, sin = _unit(aligned.detach())
        du, dv = u - cos * target_u - sin * target_v, v + sin * target_u - cos * target_v
        return sum((_dot(vector, vector) for vector in (du, dv)), _dot(self.offset, self.offset))

    @cached_property
    def _size(self) -> Tensor:
        """Root of the area that the prediction's half axes span."""
        return _root(self.area) / 2

    @cached_property
    def _target_size(self) -> Tensor:
        return _root(self.target_area) / 2

    @cached_property
    def _half_axes(self) -> tuple[Tensor, Tensor]:
        return _half_axes(self._prediction)

    @cached_property
    def _target_half_axes(self) -> tuple[Tensor, Tensor]:
        return _half_axes(self._target)


@torch.no_grad()
def _divides(a: Tensor, b: Tensor) -> Tensor:
    """Whether all of b is beyond one edge of a."""
    corners = ((_corner(a, index), _legs(a, index)[0]) for index in range(4))
    beyond = [(_cross(along, _seen_from(corner, b)) <= 0).all(0) for corner, along in corners]
    return torch.stack(beyond).any(0)


def _overlap_with_corner(a: Tensor, b: Tensor, index: int) -> Tensor:
    """Area of a within the triangle of a corner of b and the two next to it."""
    along, across = _legs(b, index)
    corners = _seen_from(_corner(b, index), a)
    size = _cross(along, across)
    x, y = (_part_of_triangle(part, size) for part in (_cross(corners, across), _cross(along, corners)))
    return size * _area_within_unit_triangle(x, y)


def _part_of_triangle(part: Tensor, size: Tensor) -> Tensor:
    """Part / size, bounded where corners are so far that rounding moves them by more than the triangle.

    Of a small triangle in steps, since the slope of a single division would not be finite; of others at once, so that
    corners which touch still do.
    """
    limits = torch.finfo(size.dtype)
    most = 1 / limits.eps
    small = size < limits.tiny**0.5
    root = _root(size)
    in_steps = _bounded_ratio(_bounded_ratio(part, root, _most(size)), root, most)
    return torch.where(small, in_steps, _bounded_ratio(part, torch.where(small, 1, size), most))


def _area_within_unit_triangle(x: Tensor, y: Tensor) -> Tensor:
    """Area of a polygon within x >= 0, y >= 0, x + y <= 1, from planes of its corners of shape (corners, ...).

    By Green's theorem that is the integral of -y dx along the boundary of the overlap. Its edges are parts of the
    polygon's edges, of the hypotenuse, below the polygon's edges there, and of the other two, which count nothing. So
    every edge of the polygon counts with the smaller of y and 1 - x, over the part where that point is in the triangle.
    Rounding may misplace the ends of that part: they are where there is little to integrate.
    """
    limit = 1 - x
    inside = torch.stack([x, y, limit])
    inside_next = inside.roll(-1, 1)
    start = _positive(_crossing(inside, inside_next).amax(0))
    stop = 1 - _positive(_crossing(inside_next, inside).amax(0))
    middle = (start + stop) / 2

    run, rise, room = x - x.roll(-1, 0), y.roll(-1, 0) - y, limit - y
    mean_y, mean_limit = y + rise * middle, limit + run * middle
    # The mean of the smaller is the smaller mean less what the other falls below it. (The other way round, digits of a
    # y just above 0 would cancel, on which the gradient depends.)
    lower = mean_y <= mean_limit
    excess = torch.where(lower, -room, room), torch.where(lower, rise - run, run - rise)
    mean = torch.where(lower, mean_y, mean_limit) - _mean_positive(*(excess[0] + excess[1] * t for t in (start, stop)))
    return (run * _positive(stop - start) * mean).sum(0)


def _crossing(here: Tensor, there: Tensor) -> Tensor:
    """Share of the way up from a number to another at which it reaches 0; above 1 if it stays below, -2 to 0 if it
    starts above.

    It is 1/4 of a way along 0, from either end: of an edge along an edge, half is inside, as half the gradient of
    torch.minimum goes to each of two equal numbers.
    """
    crossing = ratio(-here, torch.maximum(there - here, here.abs() / 2))
    return torch.where((here == 0) & (there == 0), 0.25, crossing)


def _mean_positive(start: Tensor, stop: Tensor) -> Tensor:
    """Mean of max(0, number) on the way from a number to another."""
    positive, whole = _positive(start) + _positive(stop), start.abs() + stop.abs()
    return positive * torch.where(whole == 0, 1, ratio(positive, whole)) / 2


def _positive(number: Tensor) -> Tensor:
    return torch.maximum(number, number.new_zeros(()))


def _corner(corners: Tensor, index: int) -> Tensor:
    first = 2 * (index % 4)
    return corners[first : first + 2]


def _legs(corners: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Vectors from a corner to the next and to the one before."""
    corner = _corner(corners, index)
    return _corner(corners, index + 1) - corner, _corner(corners, index - 1) - corner


def _half_axes(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of the means of opposite edges, for a rectangle along its width and along its height."""
    a, b, c, d = (_corner(corners, index) for index in range(4))
    return ((b - a) + (c - d)) / 4, ((d - a) + (c - b)) / 4


def _root(area: Tensor) -> Tensor:
    """Root of an area; 0 of one so small that what is divided by it has no finite slope."""
    return power(torch.where(area >= 1024 * torch.finfo(area.dtype).tiny, area, 0), 0.5)


def _squared_ratio(part: Tensor, size: Tensor, other_size: Tensor) -> Tensor:
    """Square of part / (size * other_size); in steps, since the product and its reciprocal need not be finite."""
    most = _most(part)
    return _bounded_ratio(_bounded_ratio(part, size, most), other_size, most) ** 2


def _most(number: Tensor) -> float:
    """A number with a finite square, and room above that."""
    return float(torch.finfo(number.dtype).max ** 0.5 / 16)


def _bounded_ratio(part: Tensor, whole: Tensor, most: float) -> Tensor:
    """Part / whole, and 0 where whole is 0, as `ratio`; at a bound, -most or most, it has no gradient."""
    divisible = whole >= torch.finfo(whole.dtype).tiny
    within = part.abs() <= most * whole
    bounded = torch.where(within, part, most * part.sign()) / torch.where(within & divisible, whole, 1)
    return torch.where(divisible, bounded, 0)


def _seen_from(origin: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Planes of x and of y, of shape (4, ...), relative to an origin."""
    return corners[0::2] - origin[0], corners[1::2] - origin[1]


def _unit(vector: Tensor) -> Tensor:
    """The vector's direction; the x axis for one too short to have any."""
    x, y = vector
    solid = x.abs() + y.abs() >= 1024 * torch.finfo(x.dtype).tiny
    x, y = torch.where(solid, x, 1), torch.where(solid, y, 0)
    return torch.stack([x, y]) / torch.hypot(x, y)


def _cross(a: _Vector, b: _Vector) -> Tensor:
    return a[0] * b[1] - a[1] * b[0]


def _dot(a: _Vector, b: _Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1]
