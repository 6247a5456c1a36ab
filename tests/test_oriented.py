"""Oriented boxes: their geometry against shapely and published values, their losses against plain linear algebra."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxloss import BCD, GWD, KLD, AlphaIoU, DIoU, Focal, Focaler, GIoU, IoU, KFIoU, Loss, ProbIoU
from boxloss.losses.oriented import GaussianLoss, Transform
from boxloss_server.losses import Geometry, OrientedGeometry, evaluate
from boxloss_server.losses.polygons import area, rectangle_corners, wound_alike

Array = NDArray[np.float64]
Pairs = tuple[Tensor, Tensor]

PUBLISHED = json.loads((Path(__file__).parent / "golden" / "published.json").read_text())["detectron2_rotated"]
SEED = 31
TRANSFORMS: tuple[Transform, ...] = ("log", "sqrt", "identity")
GAUSSIAN: list[GaussianLoss] = [
    ProbIoU(),
    ProbIoU(form="bhattacharyya"),
    *(GWD(transform=transform, tau=tau) for transform in TRANSFORMS for tau in (1.0, 2.0)),
    *(BCD(transform=transform, tau=tau) for transform in TRANSFORMS for tau in (1.0, 2.0)),
    *(
        KLD(form=form, transform=transform)
        for form in ("prediction_target", "target_prediction", "minimum", "maximum", "jeffreys")
        for transform in TRANSFORMS
    ),
    KLD(tau=2.0),
    KFIoU(),
]
POLYGONAL: list[Loss] = [IoU(), GIoU(), DIoU()]
MODIFIED: list[Loss] = [
    IoU(form="log"),
    IoU(form="square"),
    AlphaIoU(GIoU()),
    AlphaIoU(DIoU(), alpha=0.5),
    Focal(GIoU(), detach_weight=False),
    Focaler(DIoU()),
]
EVERY = [*POLYGONAL, *MODIFIED, *GAUSSIAN]

gaussian_losses = pytest.mark.parametrize("loss", GAUSSIAN, ids=repr)
every_loss = pytest.mark.parametrize("loss", EVERY, ids=repr)
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


# Pairs: planes of corners, float64


def turned(rng: np.random.Generator, count: int, first: Any, second: Any) -> Pairs:
    """Pairs from center, width, height and angle, moved to random places and turned by random angles."""
    first, second = (np.broadcast_to(np.array(each, float).reshape(5, -1), (5, count)) for each in (first, second))
    turn = rng.uniform(-math.pi, math.pi, count)
    size = np.maximum(first[2:4].max(0), second[2:4].max(0))
    move = rng.uniform(-2, 2, (2, count)) * size
    cos, sin = np.cos(turn), np.sin(turn)

    def placed(boxes: Array) -> Tensor:
        x, y, width, height, angle = boxes
        x, y = cos * x - sin * y + move[0], sin * x + cos * y + move[1]
        return rectangle_corners(torch.tensor(np.stack([x, y, width, height, angle + turn])))

    return placed(first), placed(second)


def random_rectangles(rng: np.random.Generator, count: int, size: float = 10.0) -> Array:
    """Center, sides and angle, shape (5, count); many of them overlap."""
    return np.stack(
        [
            *rng.uniform(0, size, (2, count)),
            *rng.uniform(size / 50, size, (2, count)),
            rng.uniform(-math.pi, math.pi, count),
        ]
    )


def generic(rng: np.random.Generator, count: int) -> Pairs:
    return turned(rng, count, random_rectangles(rng, count), random_rectangles(rng, count))


def axis_parallel(rng: np.random.Generator, count: int) -> Pairs:
    """On a grid, so that edges and corners coincide exactly."""
    first, second = rng.integers(0, 6, (2, 5, count)).astype(float)
    first[2:4], second[2:4] = first[2:4] + 1, second[2:4] + 1
    first[4], second[4] = 0, 0
    return rectangle_corners(torch.tensor(first)), rectangle_corners(torch.tensor(second))


def identical(rng: np.random.Generator, count: int) -> Pairs:
    box = random_rectangles(rng, count)
    return turned(rng, count, box, box)


def identical_but_for_the_corner_they_start_at(rng: np.random.Generator, count: int) -> Pairs:
    first, second = identical(rng, count)
    return first, second.roll(2, 0)


def nested(rng: np.random.Generator, count: int) -> Pairs:
    box = random_rectangles(rng, count)
    inner = box.copy()
    inner[2:4] *= rng.uniform(0.1, 1, (2, count))
    return turned(rng, count, box, inner)


def nested_in_a_corner(rng: np.random.Generator, count: int) -> Pairs:
    width, height, part = rng.uniform(1, 10, count), rng.uniform(1, 10, count), rng.uniform(0.1, 1, (2, count))
    zero = np.zeros(count)
    inner = [(part[0] - 1) * width / 2, (part[1] - 1) * height / 2, part[0] * width, part[1] * height, zero]
    return turned(rng, count, [zero, zero, width, height, zero], inner)


def sharing_an_edge(rng: np.random.Generator, count: int) -> Pairs:
    width, other, height = rng.uniform(1, 10, (3, count))
    zero = np.zeros(count)
    return turned(rng, count, [zero, zero, width, height, zero], [(width + other) / 2, zero, other, height * 0.7, zero])


def touching_at_a_corner(rng: np.random.Generator, count: int) -> Pairs:
    width, height, other, across = rng.uniform(1, 10, (4, count))
    zero = np.zeros(count)
    return turned(
        rng, count, [zero, zero, width, height, zero], [(width + other) / 2, (height + across) / 2, other, across, zero]
    )


def nearly_parallel(rng: np.random.Generator, count: int) -> Pairs:
    box = random_rectangles(rng, count)
    other = box.copy()
    other[4] += 10 ** rng.uniform(-12, -3, count) * rng.choice([-1, 1], count)
    return turned(rng, count, box, other)


def tiny(rng: np.random.Generator, count: int) -> Pairs:
    return turned(rng, count, random_rectangles(rng, count, 1e-6), random_rectangles(rng, count, 1e-6))


def huge(rng: np.random.Generator, count: int) -> Pairs:
    return turned(rng, count, random_rectangles(rng, count, 1e6), random_rectangles(rng, count, 1e6))


def thin(rng: np.random.Generator, count: int) -> Pairs:
    """1000 : 1, crossing at any angle or nearly along each other."""
    first, second = random_rectangles(rng, count), random_rectangles(rng, count)
    first[2:4] = second[2:4] = [[1000.0], [1.0]]
    second[4, ::2] = first[4, ::2] + rng.normal(0, 1e-3, len(first[4, ::2]))
    return turned(rng, count, first, second)


def tiny_and_huge(rng: np.random.Generator, count: int) -> Pairs:
    return turned(rng, count, random_rectangles(rng, count, 1e-2), random_rectangles(rng, count, 1e4))


def apart(rng: np.random.Generator, count: int) -> Pairs:
    first, second = random_rectangles(rng, count), random_rectangles(rng, count)
    second[:2] += 10 ** rng.uniform(1.5, 8, count)
    return turned(rng, count, first, second)


def quads(rng: np.random.Generator, count: int) -> Pairs:
    """Convex, in either direction, starting anywhere: four points of an ellipse."""

    def some() -> Tensor:
        angle = np.sort(rng.uniform(0, 2 * math.pi, (4, count)), 0)
        angle = np.where(rng.random(count) < 0.5, angle, angle[::-1]) + rng.uniform(0, 2 * math.pi, count)
        center, radius = rng.uniform(0, 10, (2, count)), rng.uniform(1, 10, (2, count))
        points = np.stack([center[0] + radius[0] * np.cos(angle), center[1] + radius[1] * np.sin(angle)], 1)
        return torch.tensor(points.reshape(8, count))

    return some(), some()


def identical_quads(rng: np.random.Generator, count: int) -> Pairs:
    first, _ = quads(rng, count)
    return first, first[[2, 3, 0, 1, 6, 7, 4, 5]]


KINDS: list[Callable[[np.random.Generator, int], Pairs]] = [
    generic,
    axis_parallel,
    identical,
    identical_but_for_the_corner_they_start_at,
    nested,
    nested_in_a_corner,
    sharing_an_edge,
    touching_at_a_corner,
    nearly_parallel,
    tiny,
    huge,
    thin,
    tiny_and_huge,
    apart,
    quads,
    identical_quads,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def value_and_gradients(first: Tensor, second: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of planes of corners, shape (count,), and the gradients of their sum."""
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    value = evaluate(OrientedGeometry(first, second), loss)
    gradient, target_gradient = torch.autograd.grad(value.sum(), (first, second))
    return value.detach(), gradient, target_gradient


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def sizes(first: Tensor, second: Tensor) -> Tensor:
    return torch.maximum(area(first).abs(), area(second).abs()).sqrt()


# Polygons


@precisions
@kinds
def test_iou_agrees_with_shapely(kind: Callable[..., Pairs], dtype: torch.dtype) -> None:
    shapely = pytest.importorskip("shapely", reason="shapely is the reference")
    first, second = (box.to(dtype) for box in kind(np.random.default_rng(SEED), 700))
    geometry = OrientedGeometry(first, second)

    # Near the origin, of size 1 and on a grid: without these shapely 2.2 finds no overlap for some nested boxes.
    origin, size = first.double()[:2].repeat(4, 1), sizes(first.double(), second.double())
    polygons = [
        shapely.polygons(((box.double() - origin) / size).T.reshape(-1, 4, 2).numpy()) for box in (first, second)
    ]
    intersection = shapely.area(shapely.intersection(*polygons, grid_size=1e-12))
    union = sum(shapely.area(polygon) for polygon in polygons) - intersection

    tolerance = 1e-10 if dtype == torch.float64 else 3e-4 if kind is thin else 5e-6
    np.testing.assert_allclose(geometry.iou, intersection / union, rtol=0, atol=tolerance)
    np.testing.assert_allclose(geometry.intersection / size**2, intersection, rtol=0, atol=tolerance)


def test_matrices_hold_the_ious_of_all_pairs() -> None:
    first, second = generic(np.random.default_rng(SEED), 12)
    matrix = OrientedGeometry(first[:, :, None], second[:, None, :]).iou
    assert matrix.shape == (12, 12)
    torch.testing.assert_close(matrix.diagonal(), OrientedGeometry(first, second).iou, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        matrix.T, OrientedGeometry(second[:, :, None], first[:, None, :]).iou, rtol=0, atol=1e-14
    )


def test_iou_agrees_with_detectron2s_published_values() -> None:
    pairs = []
    for case in PUBLISHED["cases"]:
        others, expected = case.get("b_list", [case.get("b")]), case.get("iou_list", [case.get("iou")])
        pairs += [(case["a"], other, iou) for other, iou in zip(others, expected, strict=True)]
    assert len(pairs) == 15

    for a, b, expected in pairs:
        # Counter-clockwise on screen, where y points down.
        boxes = (
            torch.tensor([a, b], dtype=torch.float64).T * torch.tensor([[1], [1], [1], [1], [-math.pi / 180]]).double()
        )
        for dtype, tolerance in ((torch.float64, 2e-6), (torch.float32, 1e-4)):
            first, second = rectangle_corners(boxes).to(dtype)[:, :, None].unbind(1)
            iou = OrientedGeometry(first, second).iou.item()
            assert iou == pytest.approx(0 if expected is None else expected, abs=tolerance)


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, -1])
@pytest.mark.parametrize("loss", POLYGONAL, ids=repr)
def test_upright_boxes_score_as_axis_aligned_ones(loss: Loss, quarter_turns: int) -> None:
    rng = np.random.default_rng(SEED)
    boxes = [torch.tensor(random_rectangles(rng, 200)) for _ in range(2)]
    aligned = []
    for box in boxes:
        box[4] = quarter_turns * math.pi / 2
        sides = box[[3, 2]] if quarter_turns % 2 else box[2:4]
        aligned.append(torch.cat([box[:2] - sides / 2, box[:2] + sides / 2]))
    value = evaluate(OrientedGeometry(*map(rectangle_corners, boxes)), loss)
    torch.testing.assert_close(value, evaluate(Geometry(*aligned), loss), rtol=0, atol=1e-13)


@kinds
def test_the_enclosing_rectangle_is_the_smaller_of_the_two_aligned_with_a_box(kind: Callable[..., Pairs]) -> None:
    first, second = kind(np.random.default_rng(SEED), 100)
    geometry = OrientedGeometry(first, second)
    for index in range(100):
        p, t = (box[:, index].reshape(4, 2).numpy() for box in (first, second))
        candidates = []
        for box in (p, t):
            edge = (box[1] - box[0]) / np.linalg.norm(box[1] - box[0])
            # Complex numbers turn the plane.
            points = ((np.vstack([p, t]) - t[0]) @ [1, 1j]) * (edge @ [1, -1j])
            candidates.append((np.ptp(points.real), np.ptp(points.imag)))
        rho = (p - t).mean(0)
        by_area = sorted(candidates, key=math.prod)
        if math.prod(by_area[0]) < math.prod(by_area[1]) * (1 - 1e-9):
            by_area = by_area[:1]  # Else either will do.
        whole = math.prod(by_area[0])
        assert geometry.uncovered[index].item() == pytest.approx(1 - geometry.union[index].item() / whole, abs=1e-9)
        distances = [rho @ rho / (width**2 + height**2) for width, height in by_area]
        assert min(abs(geometry.distance[index].item() - each) for each in distances) < 1e-9


def test_corners_of_a_rectangle() -> None:
    upright = rectangle_corners(torch.tensor([5.0, 3.0, 4.0, 2.0, 0.0]))
    assert upright.tolist() == [3, 2, 7, 2, 7, 4, 3, 4]
    turned = rectangle_corners(torch.tensor([5.0, 3.0, 4.0, 2.0, math.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([6.0, 1, 6, 5, 4, 5, 4, 1]))


def test_corners_are_wound_alike_and_the_first_edge_stays_the_first() -> None:
    corners = torch.tensor([3.0, 2, 7, 2, 7, 4, 3, 4])
    assert area(corners).item() == 8
    assert torch.equal(wound_alike(corners), corners)
    reverse = corners[[2, 3, 0, 1, 6, 7, 4, 5]]
    assert area(reverse).item() == -8
    assert torch.equal(wound_alike(reverse), corners)


@every_loss
def test_the_direction_of_the_corners_does_not_matter(loss: Loss) -> None:
    first, second = generic(np.random.default_rng(SEED), 50)
    expected = evaluate(OrientedGeometry(first, second), loss)
    reverse = [box[[2, 3, 0, 1, 6, 7, 4, 5]] for box in (first, second)]
    for pair in ((first, reverse[1]), (reverse[0], second), reverse):
        torch.testing.assert_close(evaluate(OrientedGeometry(*pair), loss), expected, rtol=1e-12, atol=1e-12)


@every_loss
def test_moving_and_turning_both_boxes_changes_nothing(loss: Loss) -> None:
    rng = np.random.default_rng(SEED)
    first, second = random_rectangles(rng, 200), random_rectangles(rng, 200)
    corners = (rectangle_corners(torch.tensor(box)) for box in (first, second))
    expected = evaluate(OrientedGeometry(*corners), loss)
    moved, other = turned(rng, 200, first, second)
    value, gradient, target_gradient = value_and_gradients(moved, other, loss)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    together = gradient + target_gradient
    assert max(largest(together[0::2].sum(0)), largest(together[1::2].sum(0))) < 1e-10


@every_loss
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_all_but_gwd_do_not_depend_on_the_unit(loss: Loss, scale: float) -> None:
    if isinstance(loss, GWD):
        return
    first, second = generic(np.random.default_rng(SEED), 50)
    torch.testing.assert_close(
        evaluate(OrientedGeometry(first * scale, second * scale), loss),
        evaluate(OrientedGeometry(first, second), loss),
        rtol=1e-12,
        atol=1e-12,
    )


# Gradients


@every_loss
def test_gradients_of_rectangles_agree_with_finite_differences(loss: Loss) -> None:
    rng = np.random.default_rng(SEED)
    first, second = (torch.tensor(random_rectangles(rng, 6)).requires_grad_() for _ in range(2))

    def function(p: Tensor, t: Tensor) -> Tensor:
        return evaluate(OrientedGeometry(rectangle_corners(p), rectangle_corners(t)), loss)

    assert torch.autograd.gradcheck(function, (first, second), eps=1e-6, atol=1e-7, rtol=1e-6)


@every_loss
def test_gradients_of_quadrilaterals_agree_with_finite_differences(loss: Loss) -> None:
    first, second = quads(np.random.default_rng(SEED), 200)
    _, *gradients = value_and_gradients(first, second, loss)
    step = 1e-6
    for plane in range(8):
        move = torch.zeros(8, 1, dtype=torch.float64)
        move[plane] = step
        moves = ((move, 0 * move), (0 * move, move))
        for (p, t), gradient in zip(moves, gradients, strict=True):
            after = evaluate(OrientedGeometry(first + p, second + t), loss)
            before = evaluate(OrientedGeometry(first - p, second - t), loss)
            torch.testing.assert_close(gradient[plane], (after - before) / (2 * step), atol=1e-6, rtol=1e-4)


@precisions
@kinds
def test_everything_is_finite(kind: Callable[..., Pairs], dtype: torch.dtype) -> None:
    first, second = (box.to(dtype) for box in kind(np.random.default_rng(SEED), 300))
    for loss in EVERY:
        for each in value_and_gradients(first, second, loss):
            assert each.isfinite().all(), loss


def unlike(first_side: float, second_side: float, apart: float) -> Pairs:
    """Boxes of very different sizes. The smaller is at the origin: float32 knows none that are far from it."""
    rng = np.random.default_rng(SEED)
    first, second = random_rectangles(rng, 50, 1), random_rectangles(rng, 50, 1)
    first[:4], second[:4] = first[:4] * first_side, second[:4] * second_side
    (first if first_side > second_side else second)[0] += apart
    return rectangle_corners(torch.tensor(first).float()), rectangle_corners(torch.tensor(second).float())


SIDES = [1e-12, 1e-6, 1.0, 1e6, 1e15]


@every_loss
@pytest.mark.parametrize("first_side", SIDES)
def test_everything_is_finite_however_unlike_the_boxes_are(loss: Loss, first_side: float) -> None:
    for second_side in SIDES:
        for apart in (0, max(first_side, second_side), 1e15):
            for each in value_and_gradients(*unlike(first_side, second_side, apart), loss):
                assert each.isfinite().all(), (second_side, apart)


@every_loss
@pytest.mark.parametrize("sides", [(1e-12, 1), (1, 1e-12), (1e-12, 1e-12), (1e-9, 1e3), (1e3, 1e-9)], ids=str)
def test_boxes_of_very_different_sizes_score_in_float32_as_in_float64(loss: Loss, sides: tuple[float, float]) -> None:
    for apart in (0, 10 * max(sides)):
        first, second = unlike(*sides, apart)
        value, *gradients = value_and_gradients(first, second, loss)
        expected, *others = value_and_gradients(first.double(), second.double(), loss)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        if not isinstance(loss, GaussianLoss):
            continue  # They have kinks, where rounding chooses the side.
        for gradient, other, side in zip(gradients, others, sides, strict=True):
            change, known = gradient.double() * side, other * side  # Of the loss, as the box changes by its own size.
            tolerance = 1e-3 * known.abs().amax(0).clamp(1) + 1e-5 * expected  # Parts as large as the loss cancel.
            assert ((change - known).abs() <= tolerance).all()


@kinds
def test_gradients_of_the_intersection_are_bounded_by_the_edges(kind: Callable[..., Pairs]) -> None:
    """A corner that moves sweeps at most half of what the edges beside it do, but for rounding where corners touch."""
    first, second = (wound_alike(box) for box in kind(np.random.default_rng(SEED), 1000))
    (gradient,) = torch.autograd.grad(OrientedGeometry(first.requires_grad_(), second).intersection.sum(), first)
    corners = first.detach().reshape(4, 2, -1)
    edges = (corners.roll(-1, 0) - corners).norm(dim=1)
    swept = (edges + edges.roll(1, 0)) / 2
    assert (gradient.reshape(4, 2, -1).norm(dim=1) <= 1.5 * swept).all()


@every_loss
def test_boxes_without_area_have_iou_0_and_finite_gradients(loss: Loss) -> None:
    point, line, box = [3.0, 3, 0, 0, 0.3], [3.0, 3, 5, 0, 0.3], [2.0, 4, 5, 8, 1]
    for p, t in ((point, point), (line, line), (point, line), (point, box), (box, point), (line, box), (box, line)):
        first, second = (rectangle_corners(torch.tensor(each, dtype=torch.float64))[:, None] for each in (p, t))
        assert OrientedGeometry(first, second).iou.item() == pytest.approx(0, abs=1e-15)
        for each in value_and_gradients(first, second, loss):
            assert each.isfinite().all()


# Identical boxes


@precisions
@every_loss
@pytest.mark.parametrize("side", [1e-6, 1.0, 300.0, 1e6])
def test_identical_boxes_score_0_at_any_scale(loss: Loss, dtype: torch.dtype, side: float) -> None:
    first = rectangle_corners(torch.tensor(random_rectangles(np.random.default_rng(SEED), 100, side))).to(dtype)
    value, gradient, target_gradient = value_and_gradients(first, first.clone(), loss)
    least = getattr(loss, "tau", 1) - 1
    if isinstance(loss, GaussianLoss):
        assert (value == least / (least + 1)).all()
        assert largest(gradient) == largest(target_gradient) == 0
    else:
        assert largest(value) < (1e-12 if dtype == torch.float64 else 5e-5)


@pytest.mark.parametrize("kind", [identical, identical_but_for_the_corner_they_start_at, identical_quads])
@pytest.mark.parametrize("loss", [IoU(), DIoU()], ids=repr)
def test_identical_boxes_are_at_rest(kind: Callable[..., Pairs], loss: Loss) -> None:
    """Ties are shared, so that a prediction neither grows nor shrinks from its target."""
    first, second = kind(np.random.default_rng(SEED), 200)
    value, gradient, target_gradient = value_and_gradients(first, second, loss)
    assert largest(value) < 1e-14
    assert max(largest(each * sizes(first, second)) for each in (gradient, target_gradient)) < 1e-10


def test_the_overlap_of_kf_iou_is_a_third_at_best() -> None:
    """With the centers together, the loss is 1 - 3 times the overlap."""
    rng = np.random.default_rng(SEED)
    first, second = random_rectangles(rng, 500), random_rectangles(rng, 500)
    second[:2] = first[:2]
    value = evaluate(OrientedGeometry(*turned(rng, 500, first, second)), KFIoU())
    assert 0 < value.min() < value.max() < 1


# Gaussians


class Gaussian:
    """A rectangle's, from its definition."""

    def __init__(self, box: Array, divisor: float = 4.0) -> None:
        width, height, angle = box[2:]
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self.mean = box[:2]
        self.covariance = rotation @ np.diag([width**2, height**2]) @ rotation.T / divisor


def root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)


def wasserstein(p: Gaussian, t: Gaussian) -> float:
    cross = root(root(t.covariance) @ p.covariance @ root(t.covariance))
    m = p.mean - t.mean
    return float(m @ m + np.trace(p.covariance + t.covariance - 2 * cross))


def divergence(p: Gaussian, t: Gaussian) -> float:
    inverse, m = np.linalg.inv(t.covariance), p.mean - t.mean
    logarithm = math.log(np.linalg.det(t.covariance) / np.linalg.det(p.covariance))
    return float(m @ inverse @ m + np.trace(inverse @ p.covariance) + logarithm) / 2 - 1


def bhattacharyya(p: Gaussian, t: Gaussian) -> float:
    middle, m = (p.covariance + t.covariance) / 2, p.mean - t.mean
    determinants = np.linalg.det(p.covariance) * np.linalg.det(t.covariance)
    logarithm = math.log(np.linalg.det(middle) / math.sqrt(determinants))
    return float(m @ np.linalg.inv(middle) @ m) / 8 + logarithm / 2


def tamed(distance: float, loss: GWD | KLD | BCD) -> float:
    f = {"log": math.log1p, "sqrt": math.sqrt, "identity": float}[loss.transform]
    return 1 - 1 / (loss.tau + f(distance))


def reference(prediction: Array, target: Array, loss: GaussianLoss) -> float:
    p, t = Gaussian(prediction), Gaussian(target)
    match loss:
        case ProbIoU():
            distance = bhattacharyya(Gaussian(prediction, 12.0), Gaussian(target, 12.0))
            return distance if loss.form == "bhattacharyya" else math.sqrt(1 - math.exp(-distance))
        case GWD():
            return tamed(wasserstein(p, t), loss)
        case KLD():
            forward, backward = divergence(p, t), divergence(t, p)
            forms = {
                "prediction_target": forward,
                "target_prediction": backward,
                "minimum": min(forward, backward),
                "maximum": max(forward, backward),
                "jeffreys": (forward + backward) / 2,
            }
            return tamed(forms[loss.form], loss)
        case BCD():
            return tamed(bhattacharyya(p, t), loss)
    product = p.covariance @ np.linalg.inv(p.covariance + t.covariance) @ t.covariance
    volumes = [math.sqrt(np.linalg.det(each)) for each in (p.covariance, t.covariance, product)]
    overlap = volumes[2] / (volumes[0] + volumes[1] - volumes[2])
    m = p.mean - t.mean
    return math.log1p(m @ np.linalg.inv(t.covariance) @ m) + 1 - 3 * overlap


@gaussian_losses
def test_gaussian_losses_agree_with_linear_algebra(loss: GaussianLoss) -> None:
    rng = np.random.default_rng(SEED)
    first, second = random_rectangles(rng, 200), random_rectangles(rng, 200)
    value = evaluate(OrientedGeometry(*(rectangle_corners(torch.tensor(box)) for box in (first, second))), loss)
    expected = [reference(p, t, loss) for p, t in zip(first.T, second.T, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)


@gaussian_losses
def test_gaussian_losses_keep_their_digits_for_thin_boxes_in_float32(loss: GaussianLoss) -> None:
    first, second = (box.float() for box in thin(np.random.default_rng(SEED), 500))
    value = evaluate(OrientedGeometry(first, second), loss)
    expected = evaluate(OrientedGeometry(first.double(), second.double()), loss)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_forms_of_kld_are_in_order() -> None:
    geometry = OrientedGeometry(*generic(np.random.default_rng(SEED), 200))
    forward, backward, smaller, mean, larger = (
        evaluate(geometry, KLD(form=form, transform="identity"))
        for form in ("prediction_target", "target_prediction", "minimum", "jeffreys", "maximum")
    )
    assert (smaller <= mean).all()
    assert (mean <= larger).all()
    assert torch.equal(smaller, torch.minimum(forward, backward))
    assert torch.equal(larger, torch.maximum(forward, backward))


@pytest.mark.parametrize(
    "loss", [*POLYGONAL, ProbIoU(), GWD(), BCD(), *(KLD(form=f) for f in ("minimum", "maximum", "jeffreys"))], ids=repr
)
def test_the_order_of_the_boxes_does_not_matter(loss: Loss) -> None:
    rng = np.random.default_rng(SEED)
    boxes = [torch.tensor(random_rectangles(rng, 200)).requires_grad_() for _ in range(2)]
    first, second = map(rectangle_corners, boxes)
    value = evaluate(OrientedGeometry(first, second), loss)
    swapped = evaluate(OrientedGeometry(second, first), loss)
    torch.testing.assert_close(value, swapped, rtol=1e-9, atol=1e-12)
    gradients, others = (torch.autograd.grad(each.sum(), boxes, retain_graph=True) for each in (value, swapped))
    torch.testing.assert_close(gradients, others, rtol=1e-9, atol=1e-10)
