"""Find the coins in scikit-image's coins photograph and write predictions.json.

    pip install scikit-image
    python examples/coins/detect.py

A classical detector with nothing learned. Otsu's threshold splits bright from
dark, the distance transform puts one marker in the middle of each bright blob,
and a watershed grows the markers back into regions. Each region gives one box.

The score is the region's roundness, 4 pi area / perimeter^2: 1 for a perfect
disc, about 0.8 for a square, near 0 for a thin strip. It is not a probability.
"""
# mypy: allow-untyped-calls

import json
import math
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data, feature, filters, measure, morphology, segmentation

MARKER_GAP = 15  # pixels between two markers, at least: under half a coin's width
LEAST_AREA = 400  # pixels in a region, at least: a 20 x 20 patch, smaller than any coin


class Prediction(TypedDict):
    """One entry of a COCO results file."""

    image_id: int
    category_id: int
    bbox: list[int]
    score: float


def segment(photo: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Give each bright region a number from 1 up; 0 is the background."""
    bright = morphology.closing(photo > filters.threshold_otsu(photo), np.ones((3, 3)))
    depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(bright))
    middles = feature.peak_local_max(depth, min_distance=MARKER_GAP, exclude_border=False)
    markers = np.zeros(photo.shape, dtype=np.int32)
    markers[tuple(middles.T)] = np.arange(1, len(middles) + 1)
    regions: NDArray[np.int32] = segmentation.watershed(-depth, markers, mask=depth > 0)
    return regions


def detect(photo: NDArray[np.uint8]) -> list[Prediction]:
    """Return a scored box for every region of useful size, roundest first."""
    found: list[Prediction] = []
    for region in measure.regionprops(segment(photo)):
        if region.area >= LEAST_AREA:
            top, left, bottom, right = map(int, region.bbox)
            box = [left, top, right - left, bottom - top]
            score = min(1.0, 4 * math.pi * float(region.area) / float(region.perimeter) ** 2)
            found.append({"image_id": 1, "category_id": 1, "bbox": box, "score": round(score, 4)})
    return sorted(found, key=lambda one: (-one["score"], one["bbox"]))


def main() -> None:
    """Run the detector and write its boxes, one a line, beside this script."""
    found = detect(data.coins())
    lines = ",\n".join("  " + json.dumps(one) for one in found)
    Path(__file__).with_name("predictions.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(found)} boxes written to predictions.json")


if __name__ == "__main__":
    main()
