"""COCO datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from boxloss.audit.image import Image
from boxloss.files.annotations import Class

_OF_THE_BOX = "area", "segmentation", "keypoints", "num_keypoints"
"""What an annotation says that no longer holds when its box has changed."""


def write_coco(
    images: Iterable[Image], path: Path, categories: Mapping[Class, str] | None = None, original: Path | None = None
) -> None:
    """Writes labels as a COCO dataset. Ids stay; what has none gets the next number that is free.

    Args:
        images: whose labels are written.
        path: of the file.
        categories: names by number that are to stay; classes beyond them get the next numbers.
        original: a COCO dataset that the labels come from. What else it says is kept: of the dataset, of its images,
            its categories, and its annotations by their ids. Segmentations and keypoints go where the box has changed.

    Raises:
        OSError: it cannot be written, or the original cannot be read.
    """
    document: dict[str, Any] = json.loads(original.read_text()) if original else {}
    known_images = {str(each.get("id")): each for each in _objects(document, "images")}
    known_names = {each.get("name"): each for each in _objects(document, "categories")}
    known = {(str(each.get("image_id")), each.get("id")): each for each in _objects(document, "annotations")}
    numbers = {name: number for number, name in (categories or {}).items() if isinstance(number, int)}
    free_numbers = count(max(numbers.values(), default=0) + 1)
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        picture: dict[str, Any] = {"id": image.image_id, "file_name": image.file_name or str(image.image_id)}
        if image.width and image.height:
            picture |= {"width": image.width, "height": image.height}
        pictures.append(known_images.get(str(image.image_id), {}) | picture)
        labels = image.labels
        for name in labels.classes:
            if name not in numbers:
                numbers[name] = next(free_numbers)
        for row, (x1, y1, x2, y2) in enumerate(labels.boxes.tolist()):
            box_id, box = labels.ids[row], [x1, y1, x2 - x1, y2 - y1]
            annotation = known.get((str(image.image_id), box_id), {}) if box_id is not None else {}
            if not annotation or not np.allclose(annotation["bbox"], box):
                annotation = {key: value for key, value in annotation.items() if key not in _OF_THE_BOX}
                annotation |= {"bbox": box, "area": (x2 - x1) * (y2 - y1)}
            said = {
                "id": box_id,
                "image_id": image.image_id,
                "category_id": numbers[labels.classes[row]],
                "iscrowd": int(labels.crowd[row]),
            }
            annotations.append(annotation | said)
    free = max((each["id"] for each in annotations if isinstance(each["id"], int)), default=0)
    for annotation in annotations:
        if annotation["id"] is None:
            free += 1
            annotation["id"] = free
    named = [known_names.get(name, {}) | {"id": number, "name": name} for name, number in numbers.items()]
    path.write_text(json.dumps(document | {"images": pictures, "annotations": annotations, "categories": named}))


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The rows of a part of a dataset that are objects; reading has reported the others."""
    return [each for each in document.get(key, ()) if isinstance(each, dict)]
