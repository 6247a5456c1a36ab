"""What a comparison of losses measures, and what it advises; against a real server and other ways to compute it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import boxloss
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.compare.agreement import agreement, disagreements
from boxloss.compare.comparison import Comparison, compare, default_losses
from boxloss.compare.descent import LONGEST, PAIRS, RATES, STEPS, Descent, chosen, descend
from boxloss.compare.distribution import Distribution
from boxloss.compare.evaluation import Evaluation
from boxloss.compare.facts import Facts
from boxloss.compare.frame import framed, framed_gradient, unframed
from boxloss.compare.pairs import Name, Pairs, match_images
from boxloss.compare.recommendation import Judged, Recommendation, recommend
from boxloss.compare.slopes import FLAT, Slopes, slopes
from boxloss.contract.arrays import Array
from boxloss.losses.notation import label

SQUARE = (0.0, 0.0, 10.0, 10.0)


def pairs_of(predictions: Any, targets: Any, diagonals: Any = 500.0) -> Pairs:
    boxes, others = np.array(predictions, float), np.array(targets, float)
    names = [Name(None, row, row, None) for row in range(len(boxes))]
    sizes = np.broadcast_to(np.array(diagonals, float), len(boxes)).copy()
    return Pairs(boxes, others, names, sizes, len(boxes), len(boxes))


def random_pairs(count: int, *, offset: float, growth: float, side: float = 60.0, spread: float = 0.5) -> Pairs:
    """Labels of random sizes, and predictions whose centers and sides are off by parts of them."""
    random = np.random.default_rng(7)
    sides = side * np.exp(random.normal(0, spread, (count, 2)))
    centers = random.uniform(100, 500, (count, 2))
    centers_found = centers + random.normal(0, offset, (count, 2)) * sides
    sides_found = sides * np.exp(random.normal(0, growth, (count, 2)))
    boxes = np.hstack([centers_found - sides_found / 2, centers_found + sides_found / 2])
    return pairs_of(boxes, np.hstack([centers - sides / 2, centers + sides / 2]))


def ious(a: Array, b: Array) -> Array:
    """Another way to compute the IoU."""
    width = np.clip(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]), 0, None)
    height = np.clip(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]), 0, None)
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (a, b)]
    shared: Array = width * height
    return shared / (areas[0] + areas[1] - shared)


# Pairs


def image(
    labels: Sequence[tuple[float, ...]],
    predictions: Sequence[tuple[float, ...]],
    *,
    classes: str = "",
    found: str = "",
    scores: Sequence[float] = (),
    **details: Any,
) -> Image:
    return Image(
        "a",
        Labels(np.array(labels), list(classes or "c" * len(labels)), **details),
        Predictions(
            np.array(predictions), list(found or "c" * len(predictions)), np.array(scores or [1.0] * len(predictions))
        ),
        300,
        400,
    )


def names_of(pairs: Pairs) -> list[tuple[Any, int]]:
    return sorted((name.label, name.prediction) for name in pairs.names)


def moved(x: float, y: float = 0.0) -> tuple[float, ...]:
    return x, y, x + 10, y + 10


def test_boxes_apart_match_up_to_the_reach(client: boxloss.Client) -> None:
    diagonal = np.hypot(10, 10)
    for distance, matched in ((diagonal * 0.99, 1), (diagonal * 1.01, 0)):
        assert len(match_images(client, [image([SQUARE], [moved(distance)])])) == matched
    assert len(match_images(client, [image([SQUARE], [moved(25)])], reach=2)) == 1


def test_the_nearest_of_two_that_do_not_overlap_matches(client: boxloss.Client) -> None:
    found = match_images(client, [image([SQUARE], [moved(13.5), moved(11), moved(-12)])])
    assert names_of(found) == [(0, 1)]


def test_only_one_class_matches(client: boxloss.Client) -> None:
    found = match_images(client, [image([SQUARE, moved(20)], [SQUARE, moved(20)], classes="ab", found="ba")])
    assert len(found) == 0
    assert (found.labels, found.candidates) == (2, 2)


def test_optimal_leaves_no_label_alone_where_greedy_does(client: boxloss.Client) -> None:
    # The surer prediction fits label 1 best and label 0 a little; the other reaches label 1 alone.
    boxes = [SQUARE, moved(8)], [moved(6), moved(15)]
    taken = image(*boxes, scores=[0.9, 0.8])
    assert names_of(match_images(client, [taken], method="greedy")) == [(1, 0)]
    assert names_of(match_images(client, [taken], method="optimal")) == [(0, 0), (1, 1)]


def test_what_takes_no_part_is_counted(client: boxloss.Client) -> None:
    crowd, flat = moved(100), (50.0, 50.0, 50.0, 60.0)
    each = image(
        [SQUARE, crowd, flat],
        [SQUARE, crowd, moved(50, 50)],
        crowd=np.array([False, True, False]),
        scores=[0.9, 0.9, 0.2],
    )
    found = match_images(client, [each], min_score=0.5)
    assert names_of(found) == [(0, 0)]
    assert (found.labels, found.candidates, found.crowds, found.flat) == (2, 2, 1, 1)


def test_every_annotator_is_matched(client: boxloss.Client) -> None:
    each = image([SQUARE, moved(1)], [moved(0.5)], annotators=["Ada", "Bo"], ids=["x", "y"])
    assert names_of(match_images(client, [each])) == [("x", 0), ("y", 0)]


def test_images_without_a_size_have_no_diagonal(client: boxloss.Client) -> None:
    sized = image([SQUARE], [SQUARE])
    found = match_images(client, [sized, replace(sized, width=None, height=None)])
    np.testing.assert_array_equal(found.diagonals, [500, np.nan])


# Frames


def test_frames_have_the_label_as_their_unit() -> None:
    boxes, targets = np.array([[5.0, 0, 15, 20]]), np.array([[0.0, 0, 10, 40]])
    np.testing.assert_allclose(framed(boxes, targets), [[0.5, -0.25, 1, 0.5]])
    np.testing.assert_allclose(unframed(framed(boxes, targets), targets), boxes)
    gradient = framed_gradient(np.array([[1.0, 2, 3, 4]]), targets)
    np.testing.assert_allclose(gradient, [[(1 + 3) * 10, (2 + 4) * 40, (3 - 1) / 2 * 10, (4 - 2) / 2 * 40]])


@pytest.mark.parametrize("loss", [boxloss.GIoU(), boxloss.SmoothL1(), boxloss.MPDIoU()], ids=label)
def test_gradients_are_differences_of_the_loss(client: boxloss.Client, loss: boxloss.Loss) -> None:
    pairs = random_pairs(20, offset=0.3, growth=0.3)
    evaluate = Evaluation(client, pairs)
    boxes, step = framed(pairs.predictions, pairs.targets), 1e-6
    for column in range(4):
        shifted = [unframed(boxes + sign * step * np.eye(4)[column], pairs.targets) for sign in (1, -1)]
        high, low = (evaluate(loss, each).loss for each in shifted)
        np.testing.assert_allclose(evaluate(loss).gradient[:, column], (high - low) / step / 2, rtol=1e-4, atol=1e-6)


# Evaluation


def test_images_of_all_sizes_are_evaluated_at_once(client: boxloss.Client) -> None:
    pairs = random_pairs(3, offset=0.3, growth=0.3)
    sizes = [(640, 480), (100, 300), (2000, 10)]
    pairs = replace(pairs, diagonals=np.array([np.hypot(*size) for size in sizes]))
    for loss in (boxloss.MPDIoU(), boxloss.Inner(boxloss.MPDIoU())):
        scores = Evaluation(client, pairs)(loss)
        for row, size in enumerate(sizes):
            boxes, targets = pairs.predictions[[row]], pairs.targets[[row]]
            alone = client.evaluate(boxes, targets, loss, gradients=True, image_size=size)
            assert scores.loss[row] == pytest.approx(alone.loss[0])
            assert alone.gradient is not None
            np.testing.assert_allclose(scores.gradient[row], framed_gradient(alone.gradient, targets)[0], rtol=1e-9)


def test_the_running_mean_is_that_of_the_pairs(client: boxloss.Client) -> None:
    pairs, loss = random_pairs(50, offset=0.3, growth=0.3), boxloss.WIoU(version=3)
    mean = float(1 - ious(pairs.predictions, pairs.targets).mean())
    expected = client.evaluate(pairs.predictions, pairs.targets, loss, running_mean=mean).loss
    np.testing.assert_allclose(Evaluation(client, pairs)(loss).loss, expected, rtol=1e-9)


# Distributions and agreement


def test_distributions_are_those_of_statistics() -> None:
    values = np.random.default_rng(3).exponential(size=101)
    found = Distribution.of(values)
    percentiles = statistics.quantiles(values.tolist(), n=100, method="inclusive")
    expected = (
        statistics.fmean(values),
        statistics.pstdev(values.tolist()),
        min(values),
        percentiles[24],
        statistics.median(values.tolist()),
        percentiles[74],
        percentiles[94],
        max(values),
    )
    assert found == pytest.approx(expected)


def average_ranks(values: Array) -> list[float]:
    return [1 + float((values < each).sum()) + (float((values == each).sum()) - 1) / 2 for each in values]


def tau_b(a: Array, b: Array) -> float:
    """Kendall's, pair of pairs by pair of pairs."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    agreeing = sum(x * y for x, y in signs)
    return float(agreeing / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)))


def test_correlations_are_those_by_definition() -> None:
    random = np.random.default_rng(5)
    values = random.integers(0, 8, (40, 3)).astype(float)  # With ties.
    values[:, 2] = 10 - values[:, 0] ** 2
    found = agreement(values)
    for first, second in combinations(range(3), 2):
        a, b = values[:, first], values[:, second]
        assert found.pearson[first, second] == pytest.approx(statistics.correlation(a.tolist(), b.tolist()))
        ranked = statistics.correlation(average_ranks(a), average_ranks(b))
        assert found.spearman[first, second] == pytest.approx(ranked)
        assert found.kendall[first, second] == pytest.approx(tau_b(a, b))
    assert found.spearman[0, 2] == pytest.approx(-1)
    for matrix in found:
        np.testing.assert_allclose(np.diag(matrix), 1)
        np.testing.assert_allclose(matrix, matrix.T)


def test_a_loss_that_is_the_same_for_all_correlates_with_none() -> None:
    found = agreement(np.array([[1.0, 5], [2, 5], [3, 5]]))
    for matrix in found:
        np.testing.assert_array_equal(np.isnan(matrix), [[False, True], [True, True]])


def test_the_pair_that_losses_rank_most_differently_is_named() -> None:
    values = np.array([[1, 10, 1, 1], [2, 40, 2, 0], [3, 20, 3, 3], [4, 30, 4, 4]], float)
    found = disagreements(values)
    assert {(each.first, each.second, each.row, each.first_rank, each.second_rank) for each in found} == {
        (0, 1, 1, 2, 4),
        (1, 2, 1, 4, 2),
        (0, 3, 0, 1, 2),
        (2, 3, 0, 1, 2),
        (1, 3, 1, 4, 1),
    }  # The first and the third rank alike.
    assert [each.gap for each in found] == [3, 2, 2, 1, 1]


# Slopes


def test_slopes_are_judged_by_hand() -> None:
    iou = np.array([0.5, 0.5, 0.0, 0.0, 0.5, 0.97])
    toward = np.array([1.0, 0, 0, 0])
    gradient = np.array([toward, -toward, toward, -toward, 0.009 * toward, np.zeros(4)])
    iou_gradient = np.array([toward, toward, np.zeros(4), np.zeros(4), toward, toward])
    offsets = np.tile([0.3, 0.0], (6, 1))
    found = slopes(gradient, iou_gradient, offsets, iou)
    assert found == pytest.approx((1 / 5, 2 / 5, 1.0))  # The last pair is done.
    steep = slopes(gradient * np.array([[1], [1], [1], [20], [1], [1]]), iou_gradient, offsets, iou)
    assert steep.spread == pytest.approx(np.quantile([1, 1, 1, 20], 0.95))


def test_pairs_that_are_done_have_no_slopes() -> None:
    found = slopes(np.ones((2, 4)), np.ones((2, 4)), np.zeros((2, 2)), np.array([0.96, 1]))
    assert np.isnan(found).all()


def judged(client: boxloss.Client, loss: boxloss.Loss, boxes: Any, targets: Any) -> Slopes:
    pairs = pairs_of(boxes, targets)
    evaluate = Evaluation(client, pairs)
    scores, plain = evaluate(loss), evaluate(boxloss.IoU())
    return slopes(scores.gradient, plain.gradient, framed(pairs.predictions, pairs.targets)[:, :2], plain.iou)


def test_gradients_vanish_where_the_catalogue_says(client: boxloss.Client) -> None:
    boxes, targets = [moved(5), moved(11), moved(30)], [SQUARE] * 3
    assert judged(client, boxloss.IoU(), boxes, targets).flat == pytest.approx(2 / 3)
    assert judged(client, boxloss.FocalEIoU(), boxes, targets).flat == pytest.approx(2 / 3)
    assert judged(client, boxloss.GIoU(), boxes, targets).flat == 0
    assert judged(client, boxloss.GIoU(), boxes, targets).against == 0
    assert judged(client, boxloss.PIoUv2(), boxes, targets).against == pytest.approx(1 / 3)


def test_slopes_do_not_depend_on_the_unit(client: boxloss.Client) -> None:
    pairs = random_pairs(50, offset=0.5, growth=0.4)
    for loss in (boxloss.EIoU(), boxloss.GIoU()):
        small, large = (judged(client, loss, pairs.predictions * k, pairs.targets * k) for k in (1, 1000))
        assert small == pytest.approx(large)


# Descent


def test_the_descent_is_what_a_loop_does(client: boxloss.Client) -> None:
    pairs = random_pairs(30, offset=0.6, growth=0.4)
    rows = np.arange(30)
    found = descend(Evaluation(client, pairs), pairs, rows, boxloss.L2())
    sides = pairs.targets[:, 2:] - pairs.targets[:, :2]
    scale = np.hstack([sides, sides])

    def gradient(box: Array) -> Array:
        """Of the sum of squares over the corners c +- s / 2, in the frame: 4 dc and ds, and the sides squared."""
        return np.hstack([4 * box[:, :2], box[:, 2:] - 1]) * scale**2

    paths = []
    for rate in RATES:
        box = framed(pairs.predictions, pairs.targets)
        factor = rate / np.median(np.linalg.norm(gradient(box), axis=1))
        path = [ious(unframed(box, pairs.targets), pairs.targets).mean()]
        for step in range(STEPS):
            move = factor * (1 - step / STEPS) * gradient(box)
            length = np.linalg.norm(move, axis=1, keepdims=True)
            box = box - move * np.minimum(1, LONGEST / length)
            box[:, 2:] = np.maximum(box[:, 2:], 0.01)
            path.append(ious(unframed(box, pairs.targets), pairs.targets).mean())
        paths.append(path)
    best = int(np.argmax([np.mean(path[1:]) for path in paths]))
    np.testing.assert_allclose(found.path, paths[best], rtol=1e-9)
    assert found.rate == RATES[best]
    assert found.on_the_way == pytest.approx(np.mean(paths[best][1:]))
    assert found.end == found.path[-1] > found.path[0] + 0.2


def test_without_a_gradient_nothing_moves(client: boxloss.Client) -> None:
    pairs = pairs_of([moved(20), moved(30)], [SQUARE, SQUARE])
    found = descend(Evaluation(client, pairs), pairs, np.arange(2), boxloss.IoU())
    assert found.path.tolist() == [0] * (STEPS + 1)
    assert np.isnan(found.rate)


def test_pairs_without_a_gradient_do_not_set_the_rate(client: boxloss.Client) -> None:
    pairs = pairs_of([moved(5), moved(30), moved(40)], [SQUARE] * 3)
    found = descend(Evaluation(client, pairs), pairs, np.arange(3), boxloss.IoU())
    assert found.end > 0.9 / 3 > found.path[0]


def test_few_descend_for_many() -> None:
    iou = np.random.default_rng(1).permutation(np.linspace(0, 1, 10 * PAIRS))
    rows = chosen(iou)
    assert len(set(rows.tolist())) == PAIRS
    np.testing.assert_allclose(np.sort(iou[rows]), np.linspace(0, 1, PAIRS), atol=1e-4)
    assert chosen(iou[:5]).tolist() == [0, 1, 2, 3, 4]


# Facts


def test_facts_are_worked_out_by_hand() -> None:
    targets = [(0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 20, 20), (0, 0, 40, 40), (0, 0, 40, 40)]
    boxes = [(0, 0, 10, 10), (30, 0, 40, 10), (0, 0, 12, 12), (0, 0, 40, 24), (0, 0, 40, 20)]
    pairs = pairs_of(boxes, targets)
    facts = Facts.of(pairs, ious(pairs.predictions, pairs.targets))
    assert facts.iou.mean == pytest.approx((1 + 0 + 0.36 + 0.6 + 0.5) / 5)
    assert (facts.pairs, facts.apart, facts.done, facts.low) == (5, 0.2, 0.2, 0.2)
    assert (facts.sides_off, facts.ratio_off) == (0.6, 0.4)
    assert facts.side == 20
    assert facts.moved == pytest.approx(19 * 19 / (2 * 20 * 20 - 19 * 19))
    relative = pairs_of(pairs.predictions / 40, pairs.targets / 40)
    assert Facts.of(relative, np.ones(5)).moved is None


# Advice

FACTS = Facts(500, Distribution(0.6, 0.2, 0.1, 0.4, 0.6, 0.8, 0.9, 1.0), 0.1, 0.1, 0.1, 0.1, 0.1, 60, 0.95)


def measured(
    way: float = 0.8,
    *,
    end: float = 0.9,
    flat: float = 0.0,
    against: float = 0.0,
    spread: float = 1.5,
    like_iou: float = 0.9,
) -> Judged:
    path = np.full(STEPS + 1, way)
    path[1] += path[-1] - end  # The mean stays.
    path[-1] = end
    path[0] = 0.5
    return Judged(Slopes(flat, against, spread), Descent(path, 0.1), like_iou)


def advise(facts: Facts = FACTS, **losses: Judged) -> Recommendation:
    return recommend(facts, losses)


def test_the_descent_chooses() -> None:
    found = advise(a=measured(0.7), b=measured(0.8), c=measured(0.75))
    assert found.loss == "b"
    assert "Of the 3 left, b brings the boxes closest soonest" in found.reasons[-1]
    assert "it has 0.800 on average and 0.900 at the end; a is last, with 0.700 on average" in found.reasons[-1]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"flat": 0.06}, "No gradient on more than 5% of the unfinished pairs (IoU below 0.95): bad (6%)."),
        ({"against": 0.31}, "A small step against the gradient makes more than 5% of the unfinished worse: bad (31%)."),
        ({"spread": 7.4}, "Few pairs rule the gradient, with more than 5 times the usual slope: bad (7)."),
    ],
)
def test_a_loss_with_a_fault_is_left_out(fault: dict[str, float], reason: str) -> None:
    found = advise(bad=measured(0.9, **fault), good=measured(0.7))
    assert found.loss == "good"
    assert reason in found.reasons
    assert found.reasons[-1].startswith("good is left: over 30 steps")
    assert advise(bad=measured(0.9, flat=0.05, against=0.05, spread=5), good=measured(0.7)).loss == "bad"


def test_of_equals_the_one_most_like_the_iou_is_taken() -> None:
    found = advise(a=measured(0.8, like_iou=0.7), b=measured(0.795, like_iou=0.9), c=measured(0.78, like_iou=1))
    assert found.loss == "b"
    assert found.reasons[-1].startswith(
        "2 lie within 0.01 of the best, on average and at the end, and count as equal: a, b."
    )
    assert advise(a=measured(0.8, like_iou=np.nan), b=measured(0.8, like_iou=-0.5)).loss == "b"


def test_equals_end_alike() -> None:
    found = advise(a=measured(0.8, end=0.9), b=measured(0.795, end=0.95))
    assert found.loss == "b"
    assert found.reasons[-1] == "b is within 0.01 of that, and ends higher, at 0.950."


def test_where_the_choice_matters_little_it_is_said() -> None:
    assert "The choice matters little: all lie within 0.01" in advise(a=measured(), b=measured()).reasons[-1]


def test_where_all_have_faults_none_is_recommended() -> None:
    found = advise(a=measured(flat=0.5), b=measured(against=0.5))
    assert found.loss is None
    assert found.reasons[-1] == "None is left; compare others."


def test_identical_boxes_tell_nothing() -> None:
    assert advise(FACTS._replace(iou=Distribution(*[1.0] * 8)), a=measured()).loss is None


@pytest.mark.parametrize(
    ("facts", "remark"),
    [
        ({"pairs": 99}, "only 99 pairs"),
        ({"done": 0.81}, "81% of the pairs have an IoU of 0.95 or more"),
        ({"apart": 0.0}, "No pair lies apart: this says nothing about the start of training"),
        ({"apart": 0.009}, "0.9% of the pairs lie apart"),
        (
            {"sides_off": 0.4, "ratio_off": 0.3},
            "off by more than 20% in 40% of the pairs, the ratio of the sides in 30%",
        ),
        ({"moved": 0.7, "side": 11.6}, "Compare nwd:constant=12, made for that (Wang et al. 2021)"),
        ({"low": 0.02, "iou": FACTS.iou._replace(median=0.8)}, "2.0% of the pairs have an IoU below 0.3"),
        ({"pairs": 5000}, "2000 of the 5000 pairs descended"),
    ],
)
def test_a_remark_has_its_fact(facts: dict[str, Any], remark: str) -> None:
    losses = {"ciou": measured(), "eiou": measured()}
    assert not recommend(FACTS, losses).remarks
    (found,) = recommend(FACTS._replace(**facts), losses).remarks
    assert remark in found


# Comparisons


def held(client: boxloss.Client, pairs: Pairs, *losses: boxloss.Loss) -> Comparison:
    return compare(client, pairs, losses)


def test_every_axis_aligned_loss_is_compared_unless_told_otherwise(client: boxloss.Client) -> None:
    names = {loss.name for loss in default_losses()}
    offered = {loss.name for loss in client.losses() if loss.axis_aligned}
    assert names == offered
    comparison = held(client, random_pairs(5, offset=0.1, growth=0.1))
    assert [name.partition(":")[0] for name in comparison.losses] == [loss.name for loss in default_losses()]
    assert comparison.left_out == ()


def test_a_comparison_has_the_losses_of_the_pairs(client: boxloss.Client) -> None:
    pairs = random_pairs(40, offset=0.4, growth=0.3)
    losses = [boxloss.IoU(), boxloss.AlphaIoU(boxloss.CIoU(), 2), boxloss.L1()]
    comparison = held(client, pairs, *losses)
    for (name, each), result in zip(
        comparison.losses.items(), client.compare(pairs.predictions, pairs.targets, losses), strict=True
    ):
        assert name == label(result.spec)
        np.testing.assert_array_equal(each.values, result.loss)
        assert each.distribution.mean == pytest.approx(result.loss.mean())
    np.testing.assert_allclose(comparison.iou, ious(pairs.predictions, pairs.targets))
    assert comparison.losses["iou"].like_iou == pytest.approx(1)
    assert comparison.agreement.spearman[0, 2] == pytest.approx(comparison.losses["l1"].like_iou)


def test_the_advice_follows_the_data(client: boxloss.Client) -> None:
    losses = [boxloss.IoU(), boxloss.DIoU(), boxloss.EIoU(), boxloss.SmoothL1()]
    good = held(client, random_pairs(200, offset=0.03, growth=0.03, spread=0.8), *losses)
    far = held(client, random_pairs(200, offset=0.8, growth=0.3, spread=0.8), *losses)
    sizes = held(client, random_pairs(200, offset=0.05, growth=0.6, spread=0.8), *losses)
    assert good.recommendation.loss == "iou"  # All overlap and all do.
    assert far.recommendation.loss not in ("iou", good.recommendation.loss)
    assert any("iou (" in reason and reason.startswith("No gradient") for reason in far.recommendation.reasons)
    assert sizes.recommendation.loss == "eiou"  # Only it sees the sides of boxes that overlap.
    assert any(
        "A side is off" in remark
        for remark in held(
            client, random_pairs(200, offset=0.05, growth=0.6), boxloss.CIoU(), boxloss.EIoU()
        ).recommendation.remarks
    )
    again = held(client, random_pairs(200, offset=0.8, growth=0.3, spread=0.8), *losses)
    assert again.recommendation == far.recommendation


def test_coordinates_are_left_out_where_sizes_differ_much(client: boxloss.Client) -> None:
    losses = [boxloss.L1(), boxloss.GIoU()]
    alike, unlike = (
        held(client, random_pairs(200, offset=0.5, growth=0.2, spread=spread), *losses) for spread in (0, 2)
    )
    assert alike.recommendation.loss == "l1"
    assert unlike.recommendation.loss == "giou"


def test_losses_that_need_sizes_are_left_out_without(client: boxloss.Client) -> None:
    pairs = random_pairs(5, offset=0.1, growth=0.1)
    unsized = replace(pairs, diagonals=np.array([500, np.nan, 500, 500, 500]))
    comparison = held(client, unsized, boxloss.MPDIoU(), boxloss.IoU())
    assert (list(comparison.losses), comparison.left_out) == (["iou"], ("mpdiou",))
    with pytest.raises(boxloss.InvalidInputError, match="loss mpdiou: needs the sizes of images, which 1 pairs lack"):
        held(client, unsized, boxloss.MPDIoU())


def test_what_cannot_be_compared_is_refused(client: boxloss.Client) -> None:
    with pytest.raises(boxloss.InvalidInputError, match="pairs: there are none"):
        held(client, pairs_of(np.empty((0, 4)), np.empty((0, 4))))
    with pytest.raises(boxloss.InvalidInputError, match="loss prob_iou: is for oriented boxes"):
        held(client, random_pairs(5, offset=0.1, growth=0.1), boxloss.ProbIoU())


def test_one_pair_and_identical_pairs_can_be_compared(client: boxloss.Client) -> None:
    one = held(client, random_pairs(1, offset=0.2, growth=0.1))
    assert one.recommendation.loss
    assert np.isnan(one.agreement.spearman).all()
    assert not one.disagreements
    same = held(client, pairs_of([SQUARE] * 3, [SQUARE] * 3))
    assert same.recommendation.loss is None
    assert all(each.descent.end == 1 for each in same.losses.values())


def test_flat_is_what_the_pictures_of_the_losses_call_flat() -> None:
    assert FLAT == 0.01
