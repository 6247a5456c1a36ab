"""Annotations to import into a CVAT task, "CVAT for images 1.1"."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from boxloss.audit.image import Image


def write_cvat(images: Iterable[Image], path: Path) -> None:
    """Writes labels for a task of CVAT that holds the same pictures, by their file names.

    Args:
        images: whose labels are written.
        path: of the file.

    Raises:
        OSError: it cannot be written.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    for number, image in enumerate(images):
        picture = SubElement(root, "image", id=str(number), name=image.file_name or str(image.image_id))
        if image.width and image.height:
            picture.set("width", f"{image.width:g}")
            picture.set("height", f"{image.height:g}")
        for name, (x1, y1, x2, y2) in zip(image.labels.classes, image.labels.boxes.tolist(), strict=True):
            corner = {"xtl": f"{x1:.2f}", "ytl": f"{y1:.2f}", "xbr": f"{x2:.2f}", "ybr": f"{y2:.2f}"}
            SubElement(picture, "box", {"label": name, "source": "boxloss", "occluded": "0", "z_order": "0"} | corner)
    indent(root)
    ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
