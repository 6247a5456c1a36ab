"""Which losses descend, unless others are named: all of the catalogue that are defined for axis-aligned boxes."""

from __future__ import annotations

from boxloss.losses import (
    L1,
    L2,
    NWD,
    AlphaIoU,
    BalancedL1,
    BoundedIoU,
    CIoU,
    DIoU,
    EIoU,
    Focal,
    FocalEIoU,
    Focaler,
    GIoU,
    Huber,
    Inner,
    IoU,
    Loss,
    MPDIoU,
    PIoU,
    PIoUv2,
    ShapeIoU,
    SIoU,
    SmoothL1,
    WIoU,
)
from boxloss.losses.defaults import defaults

PAPER: tuple[Loss, ...] = (IoU(), GIoU(), DIoU(), CIoU(), EIoU())
"""Those of the paper, and EIoU."""

FIELD: dict[str, tuple[Loss, ...]] = {
    "the paper's, and EIoU": PAPER,
    "other IoU losses": (
        IoU(form="log"),
        IoU(form="square"),
        SIoU(),
        WIoU(),
        WIoU(version=2),
        WIoU(version=3),
        MPDIoU(),
        PIoU(),
        PIoUv2(),
        ShapeIoU(),
    ),
    "modifiers": (AlphaIoU(CIoU()), Focal(CIoU()), FocalEIoU(), Inner(CIoU()), Focaler(CIoU())),
    "coordinates": (L1(), L2(), SmoothL1(), Huber(), BalancedL1(), BoundedIoU(), NWD(constant=1.0)),
}
"""By family. Modifiers are over CIoU, and NWD's constant is the size of the targets. What else the catalogue has joins
at its defaults.
"""

_FAMILIES = {"iou": "other IoU losses", "modifiers": "modifiers", "coordinates": "coordinates"}

_NAMED = {type(loss) for family in FIELD.values() for loss in family}
for _loss in defaults(CIoU()):
    if _loss.axis_aligned and type(_loss) not in _NAMED:
        FIELD[_FAMILIES[type(_loss).__module__.rpartition(".")[2]]] += (_loss,)

ALL = tuple(loss for family in FIELD.values() for loss in family)
