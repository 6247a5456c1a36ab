"""COCO datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from boxloss.audit.annotations import Class
from boxloss.audit.image import Image


def write_coco(images: Iterable[Image], path: Path, categories: Mapping[Class, str] | None = None) -> None:
    """Writes labels as a COCO dataset. Ids stay; what has none gets the next number that is free.

    Args:
        images: whose labels are written.
        path: of the file.
        categories: names by number that are to stay; classes beyond them get the next numbers.

    Raises:
        OSError: it cannot be written.
    """
    numbers = {name: number for number, name in (categories or {}).items() if isinstance(number, int)}
    free_numbers = count(max(numbers.values(), default=0) + 1)
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        picture: dict[str, Any] = {"id": image.image_id, "file_name": image.file_name or str(image.image_id)}
        if image.width and image.height:
            picture |= {"width": image.width, "height": image.height}
        pictures.append(picture)
        labels = image.labels
        for name in labels.classes:
            if name not in numbers:
                numbers[name] = next(free_numbers)
        for row, (x1, y1, x2, y2) in enumerate(labels.boxes.tolist()):
            annotations.append(
                {
                    "id": labels.ids[row],
                    "image_id": image.image_id,
                    "category_id": numbers[labels.classes[row]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(labels.crowd[row]),
                }
            )
    free = max((each["id"] for each in annotations if isinstance(each["id"], int)), default=0)
    for annotation in annotations:
        if annotation["id"] is None:
            free += 1
            annotation["id"] = free
    named = [{"id": number, "name": name} for name, number in numbers.items()]
    path.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": named}))
