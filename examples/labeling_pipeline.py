"""Audits labels as a labeling pipeline delivers them: images with a doubtful label go to review, the others on.

Run it with `python examples/labeling_pipeline.py [HOST:PORT]`; without an address, a server starts inside the process.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import boxloss
from boxloss.audit.image import Image, Labels
from boxloss.files import formats
from boxloss.files.join import join

COINS = Path(__file__).parent / "coins"
SURE = 0.8  # Scores run from 0 to 1: from here on, a finding is worth a second look.


def delivered() -> Iterator[Image]:
    """Images as they are labeled: here one, as three people draw it. iter(queue.get, None) would do as well."""
    labels = formats.read(COINS / "labels.json", "labels", print)
    (coins,) = join(labels, formats.read(COINS / "predictions.json", "predictions", print)).images
    right = coins.labels.boxes
    for name, boxes in ("careful", right), ("forgetful", right[:-1]), ("eager", np.vstack([right, right[-1]])):
        yield Image(name, Labels(boxes, ["coin"] * len(boxes)), coins.predictions, coins.width, coins.height)


client = boxloss.Client(sys.argv[1]) if len(sys.argv) > 1 else boxloss.embedded()
with client:
    audited, review = client.audit(delivered()), []
    for image in audited:
        doubts = [finding.message for finding in image.findings if finding.score >= SURE]
        print(f"{image.image_id}:", *doubts or ["goes on"])
        if doubts:
            review.append(str(image.image_id))
summary = audited.summary()
print(f"{summary.labels} labels, {sum(summary.findings.values())} findings; to review: {', '.join(review)}")
