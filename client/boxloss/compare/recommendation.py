"""Which loss, and why: a few rules over what was measured of the pairs. docs/compare.md lists them.

It is advice from the statistics of these boxes. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from boxloss.compare.descent import PAIRS, STEPS, Descent
from boxloss.compare.facts import LOW, OFF, Facts
from boxloss.compare.slopes import DONE, Slopes

MOST = 0.05
"""Share of unfinished pairs that a loss may leave without a gradient, or lead astray."""
STEEP = 5.0
"""Most that the slopes of few pairs may exceed the usual."""
EQUAL = 0.01
"""Mean IoU by which two losses may differ and count as equally good."""

_FEW = 100
_EARLY = 0.01
_MANY = 0.2
_JUMPY = 0.75
_GOOD = 0.7
_OUTLIERS = 0.1


class Judged(NamedTuple):
    """What the rules see of a loss.

    Attributes:
        slopes: of its gradients.
        descent: what they do.
        like_iou: Spearman's correlation with 1 - IoU; NaN where the loss, or the IoU, is the same for all pairs.
    """

    slopes: Slopes
    descent: Descent
    like_iou: float


class Recommendation(NamedTuple):
    """Advice.

    Attributes:
        loss: the name of the loss; None where all have a fault.
        reasons: what led to it, in order.
        remarks: what else the figures say.
    """

    loss: str | None
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]


def recommend(facts: Facts, losses: Mapping[str, Judged]) -> Recommendation:
    """Chooses a loss: what has a fault is left out, the descent chooses, and of equals the one most like the IoU.

    Losses are equal whose mean IoU is within `EQUAL` of the best, on average over the descent and at its end.

    Args:
        facts: of the pairs.
        losses: by name; where all else is equal, the first is taken.
    """
    remarks = tuple(_remarks(facts, losses))
    if facts.iou.minimum == 1:
        return Recommendation(None, ("All predictions are identical to their labels: nothing tells losses apart.",), ())
    reasons = []
    if facts.apart:
        reasons.append(
            f"{facts.apart:.0%} of the pairs do not overlap, where the IoU has no gradient (Rezatofighi et al. 2019)."
        )
    left = dict(losses)
    for text, faulty in (
        (f"No gradient on more than {MOST:.0%} of the unfinished pairs (IoU below {DONE:g})", _flat(losses)),
        (f"A small step against the gradient makes more than {MOST:.0%} of the unfinished worse", _against(losses)),
        (f"Few pairs rule the gradient, with more than {STEEP:g} times the usual slope", _steep(losses)),
    ):
        if named := [f"{name} ({figure})" for name, figure in faulty.items() if left.pop(name, None)]:
            reasons.append(f"{text}: {', '.join(named)}.")
    if not left:
        return Recommendation(None, (*reasons, "None is left; compare others."), remarks)
    way = {name: each.descent.on_the_way for name, each in left.items()}
    best, worst = max(way, key=lambda name: way[name]), min(way, key=lambda name: way[name])
    near = [name for name in left if way[name] >= way[best] - EQUAL]
    end = max(left[name].descent.end for name in near)
    equals = [name for name in near if left[name].descent.end >= end - EQUAL]
    chosen = max(equals, key=lambda name: np.nan_to_num(left[name].like_iou, nan=-2))
    descent = left[best].descent
    first = f"Of the {len(left)} left, {best} brings the boxes closest soonest" if len(left) > 1 else f"{best} is left"
    last = f"; {worst} is last, with {way[worst]:.3f} on average" if len(left) > 1 else ""
    reasons.append(
        f"{first}: over {STEPS} steps of descent, from a mean IoU of {descent.path[0]:.3f}, it has "
        f"{descent.on_the_way:.3f} on average and {descent.end:.3f} at the end{last}."
    )
    if len(equals) > 1:
        how_many = "The choice matters little: all" if len(equals) == len(left) else f"{len(equals)}"
        reasons.append(
            f"{how_many} lie within {EQUAL:g} of the best, on average and at the end, and count as equal: "
            f"{', '.join(equals)}. Of these, {chosen} orders the pairs most as the IoU does, by which detectors are "
            "judged."
        )
    elif chosen != best:
        reasons.append(f"{chosen} is within {EQUAL:g} of that, and ends higher, at {end:.3f}.")
    return Recommendation(chosen, tuple(reasons), remarks)


def _flat(losses: Mapping[str, Judged]) -> dict[str, str]:
    return {name: f"{each.slopes.flat:.0%}" for name, each in losses.items() if each.slopes.flat > MOST}


def _against(losses: Mapping[str, Judged]) -> dict[str, str]:
    return {name: f"{each.slopes.against:.0%}" for name, each in losses.items() if each.slopes.against > MOST}


def _steep(losses: Mapping[str, Judged]) -> dict[str, str]:
    return {name: f"{each.slopes.spread:.0f}" for name, each in losses.items() if each.slopes.spread > STEEP}


def _remarks(facts: Facts, losses: Mapping[str, Judged]) -> Iterator[str]:
    if facts.pairs < _FEW:
        yield f"There are only {facts.pairs} pairs: a few others could turn the advice."
    if facts.done > 1 - _MANY:
        yield f"{facts.done:.0%} of the pairs have an IoU of {DONE:g} or more: for them no loss has much left to do."
    if facts.apart < _EARLY:
        few = f"{facts.apart:.1%} of the pairs lie" if facts.apart else "No pair lies"
        yield (
            f"{few} apart: this says nothing about the start of training, when many do. Compare the predictions of an "
            "early checkpoint, too."
        )
    if facts.sides_off > _MANY and {"ciou", "eiou"} <= losses.keys():
        yield (
            f"A side is off by more than {OFF:.0%} in {facts.sides_off:.0%} of the pairs, the ratio of the sides in "
            f"{facts.ratio_off:.0%}: CIoU sees the ratio alone, EIoU the sides (Zhang et al. 2022)."
        )
    if facts.moved is not None and facts.moved < _JUMPY:
        yield (
            f"Labels are small, {facts.side:.0f} pixels: moved by one pixel, the median label has an IoU of "
            f"{facts.moved:.2f} with itself. Compare nwd:constant={facts.side:.0f}, made for that (Wang et al. 2021)."
        )
    if 0 < facts.low <= _OUTLIERS and facts.iou.median > _GOOD:
        yield (
            f"{facts.low:.1%} of the pairs have an IoU below {LOW:g}, half of all above {facts.iou.median:.2f}: "
            "some may be wrong labels, which boxloss audit finds. wiou:version=3 turns from them (Tong et al. 2023)."
        )
    if facts.pairs > PAIRS:
        yield f"{PAIRS} of the {facts.pairs} pairs descended, at even distances in the order of their IoU."
