"""What tests of the audit's readers share: reading a source to its end, and small files to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boxloss.files.annotations import Annotations, Source
from boxloss.files.formats import Role, read
from boxloss.files.problems import Problem

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
"""In the order of the class numbers of the detector's text files."""


def everything(path: Path, role: Role = "labels", **options: Any) -> tuple[Source, list[Annotations], list[Problem]]:
    problems: list[Problem] = []
    source = read(path, role, problems.append, **options)
    return source, list(source), problems


def clean(path: Path, role: Role = "labels", **options: Any) -> list[Annotations]:
    """The images of a source that has nothing wrong."""
    _, images, problems = everything(path, role, **options)
    assert problems == []
    return images


def faulty(path: Path, role: Role = "labels", **options: Any) -> tuple[list[Annotations], list[str]]:
    """The images of a source, and what is wrong in it, without the folder."""
    _, images, problems = everything(path, role, **options)
    return images, [str(problem).replace(f"{path.parent}/", "") for problem in problems]


def write(path: Path, content: str | bytes | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dataset(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    """A COCO dataset of one image, 100 by 50."""
    images = [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 50} | image]
    defaults = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20]}
    return {
        "images": images,
        "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [defaults | {"id": row} | annotation for row, annotation in enumerate(annotations)],
    }


def voc(name: str, objects: str, size: str = "<size><width>100</width><height>50</height></size>") -> str:
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
