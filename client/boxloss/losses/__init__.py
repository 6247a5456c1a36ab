"""The loss specifications: what to compute, as plain data.

A specification is a frozen dataclass named as the literature names the loss. Its parameters carry their meaning and
range, which the constructor checks and which the catalogue shows. The server computes; a pair has one loss, whatever
format its boxes come in.

In the formulas, I and U are the areas of intersection and union, C is the area of the smallest enclosing box, cw, ch
and c its sides and diagonal, rho the distance of the centers, dx and dy its parts; w, h are the prediction's sides and
W, H the target's; d is a difference of coordinates. Of oriented boxes, m is the vector between the centers, and P and T
are the covariances of prediction and target as Gaussians.
"""

from boxloss.losses import coordinates, iou, modifiers, oriented
from boxloss.losses.coordinates import *
from boxloss.losses.iou import *
from boxloss.losses.loss import CATALOGUE, Base, Loss, PenaltyLoss
from boxloss.losses.modifiers import *
from boxloss.losses.oriented import *

__all__ = ["CATALOGUE", "Base", "Loss", "PenaltyLoss"]
__all__ += coordinates.__all__
__all__ += iou.__all__
__all__ += modifiers.__all__
__all__ += oriented.__all__
