"""Losses of oriented boxes as Gaussians: smooth in the angle, where the IoU of polygons is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from boxloss.losses.loss import Loss, parameter
from boxloss.losses.parameters import Choice, Number

__all__ = ["BCD", "GWD", "KLD", "KFIoU", "ProbIoU"]

Transform = Literal["log", "sqrt", "identity"]

_FLAT = "Nearly flat for boxes far apart, with d itself most of all."
_SQUARE = "The angle of a square box makes no difference."


def _transform() -> Any:
    return parameter(
        Choice(summary="f: ln(1 + d), sqrt d or d.", choices=("log", "sqrt", "identity")),
        default="log",
    )


def _tau() -> Any:
    return parameter(Number(summary="At 1, identical boxes score 0.", minimum=1), default=1.0)


@dataclass(frozen=True)
class GaussianLoss(Loss):
    """Base of the losses of oriented boxes as Gaussians with the covariance R diag(w^2 / 4, h^2 / 4) R^T."""

    @property
    def axis_aligned(self) -> bool:
        return False

    @property
    def oriented(self) -> bool:
        return True

    @property
    def has_similarity(self) -> bool:
        return True


@dataclass(frozen=True)
class ProbIoU(GaussianLoss):
    """Probabilistic IoU loss; its covariance has w^2 / 12, that of a box of even density."""

    name = "prob_iou"
    title = "ProbIoU"
    summary = "Hellinger distance of the boxes as Gaussians: an IoU of fuzzy boxes."
    formula = (
        "sqrt(1 - e^-B) or B; B = m^T S^-1 m / 8 + ln(det S / sqrt(det P det T)) / 2; S = (P + T) / 2, of w^2 / 12"
    )
    paper = "Llerena et al., Gaussian Bounding Boxes and Probabilistic Intersection-over-Union, 2021, arXiv:2106.06072"
    blind_spots = f"The Hellinger form is flat for boxes far apart; the Bhattacharyya form is not. {_SQUARE}"
    aliases = "Ultralytics probiou; PaddleDetection ProbIoULoss"

    form: Literal["hellinger", "bhattacharyya"] = parameter(
        Choice(summary="Hellinger (0 to 1) or Bhattacharyya distance.", choices=("hellinger", "bhattacharyya")),
        default="hellinger",
    )

    @property
    def has_similarity(self) -> bool:
        return self.form == "hellinger"


@dataclass(frozen=True)
class GWD(GaussianLoss):
    """Gaussian Wasserstein distance loss."""

    name = "gwd"
    title = "GWD"
    summary = "Wasserstein distance of the boxes as Gaussians: no jump where angle and sides trade places."
    formula = "1 - 1 / (tau + f(d^2)); d^2 = |m|^2 + tr P + tr T - 2 sqrt(tr(P T) + 2 sqrt(det P det T))"
    paper = "Yang et al., Gaussian Wasserstein Distance Loss, ICML 2021, arXiv:2101.11952"
    blind_spots = f"Ranks by the boxes' unit. {_FLAT} {_SQUARE}"
    aliases = "mmrotate GDLoss, loss_type gwd"

    transform: Transform = _transform()
    tau: float = _tau()


@dataclass(frozen=True)
class KLD(GaussianLoss):
    """Kullback-Leibler divergence loss."""

    name = "kld"
    title = "KLD"
    summary = "Kullback-Leibler divergence of the boxes as Gaussians: scale-invariant, strict on long boxes' angles."
    formula = (
        "1 - 1 / (tau + f(d)); d = KL(P | T) = (m^T T^-1 m + tr(T^-1 P) + ln(det T / det P)) / 2 - 1, "
        "or a symmetric form"
    )
    paper = "Yang et al., Learning High-Precision Bounding Box for Rotated Object Detection, 2021, arXiv:2106.01883"
    blind_spots = f"{_FLAT} {_SQUARE}"
    aliases = "mmrotate GDLoss, loss_type kld, jd, kld_symmax and kld_symmin"

    form: Literal["prediction_target", "target_prediction", "minimum", "maximum", "jeffreys"] = parameter(
        Choice(
            summary="KL(P | T), KL(T | P), the smaller of them, the larger, or their mean.",
            choices=("prediction_target", "target_prediction", "minimum", "maximum", "jeffreys"),
        ),
        default="prediction_target",
    )
    transform: Transform = _transform()
    tau: float = _tau()


@dataclass(frozen=True)
class BCD(GaussianLoss):
    """Bhattacharyya distance loss."""

    name = "bcd"
    title = "BCD"
    summary = "Bhattacharyya distance of the boxes as Gaussians: symmetric and scale-invariant."
    formula = "1 - 1 / (tau + f(B)); B = m^T S^-1 m / 8 + ln(det S / sqrt(det P det T)) / 2; S = (P + T) / 2"
    paper = "Yang et al., Detecting Rotated Objects as Gaussian Distributions, TPAMI 2022, arXiv:2209.10839"
    blind_spots = f"{_FLAT} {_SQUARE}"
    aliases = "mmrotate GDLoss_v1, loss_type bcd"

    transform: Transform = _transform()
    tau: float = _tau()


@dataclass(frozen=True)
class KFIoU(GaussianLoss):
    """Kalman filter IoU loss, with a term for the centers; identical boxes score 0."""

    name = "kf_iou"
    title = "KFIoU"
    summary = "Overlap of the boxes as Gaussians about one center, by the product that a Kalman filter takes."
    formula = "ln(1 + m^T T^-1 m) + 1 - 3 K; K = k / (sqrt(det P) + sqrt(det T) - k); k = sqrt(det(P (P + T)^-1 T))"
    paper = "Yang et al., The KFIoU Loss for Rotated Object Detection, ICLR 2023, arXiv:2201.12558"
    blind_spots = f"The overlap does not see the centers; the pull of the first term fades as 1 / distance. {_SQUARE}"
    aliases = "mmrotate KFLoss, whose overlap is 1 / 3 at best and whose centers are compared by Smooth L1"

    @property
    def has_similarity(self) -> bool:
        return False
