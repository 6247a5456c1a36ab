"""All losses over the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from boxloss.calls.client import Client
from boxloss.compare.agreement import Agreement, Disagreement, agreement, disagreements
from boxloss.compare.descent import Descent, chosen, descend
from boxloss.compare.distribution import Distribution
from boxloss.compare.evaluation import Evaluation
from boxloss.compare.facts import Facts
from boxloss.compare.frame import framed
from boxloss.compare.pairs import Pairs
from boxloss.compare.recommendation import Judged, Recommendation, recommend
from boxloss.compare.slopes import Slopes, slopes
from boxloss.contract.arrays import Array
from boxloss.errors import fault
from boxloss.losses import GIoU, IoU, Loss
from boxloss.losses.defaults import defaults
from boxloss.losses.notation import label

Track: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Measures:
    """What was measured of one loss."""

    values: Array
    """Of the pairs."""
    distribution: Distribution
    slopes: Slopes
    descent: Descent
    like_iou: float
    """Spearman's correlation with 1 - IoU; NaN where either is the same for all pairs."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Losses side by side."""

    pairs: Pairs
    iou: Array
    facts: Facts
    losses: Mapping[str, Measures]
    """By name, as `--loss` has it."""
    agreement: Agreement
    """Of the losses, in their order."""
    disagreements: Sequence[Disagreement]
    recommendation: Recommendation
    left_out: tuple[str, ...]
    """Names of losses that need the sizes of images, where these are not known."""


def default_losses() -> list[Loss]:
    """Every axis-aligned loss of the catalogue at its defaults; those that modify another modify GIoU."""
    return [loss for loss in defaults(GIoU()) if loss.axis_aligned]


def compare(
    client: Client, pairs: Pairs, losses: Iterable[Loss] = (), track: Track = lambda work, _: work
) -> Comparison:
    """Compares losses over pairs of boxes.

    >>> pairs = match_images(client, images)
    >>> compare(client, pairs, [boxloss.GIoU(), boxloss.EIoU()]).recommendation

    Args:
        client: evaluates the losses.
        pairs: what they are compared over.
        losses: to compare; by default `default_losses`. The running mean of those that need one is that of the pairs.
        track: shows the progress.

    Raises:
        InvalidInputError: there are no pairs, or no losses that are defined for them.
        BoxlossError: the server could not compute.
    """
    if not len(pairs):
        raise fault("pairs", "there are none to compare losses over")
    asked = {label(loss): loss for loss in losses or default_losses()}
    for name, loss in asked.items():
        if not loss.axis_aligned:
            raise fault(f"loss {name}", "is for oriented boxes, and these are axis-aligned; leave it out")
    evaluate = Evaluation(client, pairs)
    left_out = tuple(name for name, loss in asked.items() if evaluate.lacks(loss))
    if len(left_out) == len(asked):
        unsized = int(np.isnan(pairs.diagonals).sum())
        what = (
            f"needs the sizes of images, which {unsized} pairs lack; take other losses, or labels that tell the sizes"
        )
        raise fault(f"loss {', '.join(left_out)}", what)
    plain = evaluate(IoU())
    offsets = framed(pairs.predictions, pairs.targets)[:, :2]
    rows = chosen(plain.iou)
    measures = {}
    for name in track([name for name in asked if name not in left_out], "comparing losses"):
        scores = evaluate(asked[name])
        measures[name] = Measures(
            scores.loss,
            Distribution.of(scores.loss),
            slopes(scores.gradient, plain.gradient, offsets, plain.iou),
            descend(evaluate, pairs, rows, asked[name]),
            _spearman(scores.loss, 1 - plain.iou),
        )
    values = np.column_stack([each.values for each in measures.values()])
    facts = Facts.of(pairs, plain.iou)
    judged = {name: Judged(each.slopes, each.descent, each.like_iou) for name, each in measures.items()}
    return Comparison(
        pairs,
        plain.iou,
        facts,
        measures,
        agreement(values),
        disagreements(values),
        recommend(facts, judged),
        left_out,
    )


def _spearman(a: Array, b: Array) -> float:
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan
