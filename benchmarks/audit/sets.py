"""The real labels and predictions that audits are measured on; they lie beside the project."""

from __future__ import annotations

from tests.shared_data import FOLDER

from benchmarks.errors import BenchmarkError
from boxloss.audit.image import Image
from boxloss.files.formats import read
from boxloss.files.join import join
from boxloss.files.problems import Problem

_FILES = {
    "coco": (
        "coco_val2014_100/instances_val2014_100.json",
        "coco_val2014_100/instances_val2014_fakebbox100_results.json",
    ),
    "voc": ("voc100_multiformat/gts/pascalvoc_format", "voc100_multiformat/dets/coco_format"),
}
SETS = tuple(_FILES)
"""100 images of COCO with predictions made of their labels; 100 of Pascal VOC with those of a detector."""


def images_of(name: str) -> tuple[Image, ...]:
    """The images of a set.

    Raises:
        BenchmarkError: it is not there.
    """
    labels, predictions = (FOLDER / part for part in _FILES[name])
    if not labels.exists():
        raise BenchmarkError(f"the real boxes are not there: {labels}")
    problems: list[Problem] = []
    joined = join(
        read(labels, "labels", problems.append), read(predictions, "predictions", problems.append), complete=True
    )
    if problems:
        raise BenchmarkError(f"the real boxes are not as they should be: {problems[0]}")
    return joined.images
