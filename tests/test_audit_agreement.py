"""How far annotators agree: matches, classes, consensus, and Krippendorff's alpha."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest

from boxloss.audit.agreement import BINS, Agreements
from boxloss.audit.image import Labels
from boxloss.errors import InvalidInputError

CAT = [100.0, 100.0, 200.0, 200.0]
DOG = [300.0, 100.0, 420.0, 180.0]


def drawn(*boxes: tuple[list[float], str]) -> Labels:
    return Labels(np.array([box for box, _ in boxes]).reshape(-1, 4), [name for _, name in boxes])


def test_annotators_who_draw_the_same_agree_fully() -> None:
    agreements = Agreements()
    same = drawn((CAT, "cat"), (DOG, "dog"))
    consensus = agreements.add({"ann": same, "bob": same, "cy": same})
    assert [(each.class_name, each.iou, each.annotators) for each in consensus] == [
        ("cat", 1.0, ("ann", "bob", "cy")),
        ("dog", 1.0, ("ann", "bob", "cy")),
    ]
    result = agreements.result()
    assert result.alpha == 1.0
    assert result.images == 1
    assert {names: share.agreement for names, share in result.pairs.items()} == {
        ("ann", "bob"): 1.0,
        ("ann", "cy"): 1.0,
        ("bob", "cy"): 1.0,
    }
    assert result.iou_histogram.tolist() == [0] * (BINS - 1) + [6]


def test_a_box_that_one_annotator_left_out_counts_against_both() -> None:
    agreements = Agreements()
    agreements.add({"ann": drawn((CAT, "cat"), (DOG, "dog")), "bob": drawn((CAT, "cat"))})
    result = agreements.result()
    share = result.pairs["ann", "bob"]
    assert (share.boxes, share.matched, share.same_class) == (3, 2, 2)
    assert share.agreement == pytest.approx(2 / 3)  # 2 TP / (2 TP + FP + FN) with one pair and one box alone.
    assert result.annotators["ann"].agreement == 0.5
    assert result.annotators["bob"].agreement == 1.0
    assert result.classes["dog"].agreement == 0.0


def test_an_annotator_who_drew_nothing_has_looked_nevertheless() -> None:
    agreements = Agreements()
    assert agreements.add({"ann": drawn((CAT, "cat")), "bob": drawn()}) == []
    result = agreements.result()
    assert result.images == 1
    assert result.annotators["ann"].agreement == 0.0
    assert math.isnan(result.annotators["bob"].agreement)
    assert math.isnan(result.alpha)


def test_who_looked_alone_is_compared_with_nobody() -> None:
    agreements = Agreements()
    assert agreements.add({"ann": drawn((CAT, "cat"))}) == []
    assert agreements.result().images == 0


def test_the_consensus_is_the_median_box_and_the_class_of_most() -> None:
    agreements = Agreements()
    boxes = [[corner + offset for corner in CAT] for offset in (0.0, 4.0, 6.0)]
    (each,) = agreements.add(
        dict(zip("abc", (drawn((box, n)) for box, n in zip(boxes, ["cat", "dog", "dog"], strict=True)), strict=True))
    )
    assert each.box == tuple(boxes[1])
    assert each.class_name == "dog"
    assert each.iou == pytest.approx(96 * 96 / (2 * 100 * 100 - 96 * 96))


def test_an_object_takes_one_box_of_each_annotator_and_those_that_fit_best() -> None:
    agreements = Agreements()
    near = [corner + 10 for corner in CAT]
    agreements.add({"ann": drawn((near, "cat"), (CAT, "cat")), "bob": drawn((CAT, "cat"))})
    share = agreements.result().pairs["ann", "bob"]
    assert (share.boxes, share.matched, share.mean_iou) == (3, 2, 1.0)


def test_alpha_is_krippendorffs() -> None:
    rng = np.random.default_rng(0)
    names = ["cat", "dog", "fox"]
    agreements = Agreements()
    votes = []
    for _ in range(60):
        truth = rng.integers(3)
        vote = np.where(rng.random(4) < 0.7, truth, rng.integers(3, size=4)).astype(float)
        vote[rng.random(4) < 0.2] = np.nan  # Some left it out.
        votes.append(vote)
        agreements.add(
            {f"{who}": drawn() if np.isnan(each) else drawn((CAT, names[int(each)])) for who, each in enumerate(vote)}
        )
    expected = krippendorff.alpha(np.array(votes).T, level_of_measurement="nominal")
    assert agreements.result().alpha == pytest.approx(expected, abs=1e-12)


def test_memory_does_not_grow_with_images() -> None:
    agreements = Agreements()
    both = {"ann": drawn((CAT, "cat")), "bob": drawn((CAT, "dog"))}
    agreements.add(both)
    before = {name: len(value) for name, value in vars(agreements).items() if hasattr(value, "__len__")}
    for _ in range(100):
        agreements.add(both)
    assert {name: len(value) for name, value in vars(agreements).items() if hasattr(value, "__len__")} == before


def test_a_threshold_out_of_range_is_named() -> None:
    with pytest.raises(InvalidInputError, match="min_iou"):
        Agreements(0.0)
