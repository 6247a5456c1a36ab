"""The pictures that labels belong to, as files in a folder."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image as Picture
from PIL import ImageOps

from boxloss.audit.finding import Corners
from boxloss.audit.image import Id
from boxloss.files.annotations import Annotations, Source, placed
from boxloss.files.filenames import is_picture, parts

_QUALITY = 80
_ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned."""
_TURNED = (5, 6, 7, 8)


class Pictures:
    """Finds pictures by the names that images have, and cuts out parts of them.

    Names join as they do for labels and predictions: by as many of the last folders as needed, without endings. Only
    what lies in the folder is ever opened, whatever a name says.

    Args:
        folder: that holds them, or whose subfolders do.
    """

    def __init__(self, folder: Path) -> None:
        self._by_stem: defaultdict[tuple[str, ...], list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        for path in sorted(folder.rglob("*")):
            if is_picture(path.name) and path.is_file():
                name = parts(path.relative_to(folder).as_posix())
                self._by_stem[name[-1:]].append((name, path))
        self.missing: dict[str, None] = {}
        """Names of images whose picture is not there, is one of several or cannot be read."""

    def size(self, image_id: Id | None, file_name: str | None) -> tuple[float, float] | None:
        """Width and height in pixels as the picture is shown; None if it is not there."""
        try:
            path = self._find(image_id, file_name)
            with Picture.open(path) as picture:
                width, height = picture.size
                turned = picture.getexif().get(_ORIENTATION) in _TURNED
                return (height, width) if turned else (width, height)
        except (OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
            return None

    def cut(
        self,
        image_id: Id | None,
        file_name: str | None,
        size: tuple[float, float] | None,
        window: Corners,
        widest: int,
    ) -> str | None:
        """A part of a picture as a data URI; None, and it is noted as missing, if the picture is not there.

        Args:
            image_id: of the image.
            file_name: of its picture, where it is known.
            size: of the image in the units of the window; None if these are pixels.
            window: what to cut out, within the image.
            widest: pixels of the result in each direction, at most.
        """
        try:
            path = self._find(image_id, file_name)
            with Picture.open(path) as opened:
                shown = _upright(opened, size)
                width, height = size or shown.size
                across, down = shown.width / width, shown.height / height
                x1, y1, x2, y2 = window
                box = x1 * across, y1 * down, x2 * across, y2 * down
                shrink = min(1.0, widest / max(box[2] - box[0], box[3] - box[1]))
                target = max(1, round((box[2] - box[0]) * shrink)), max(1, round((box[3] - box[1]) * shrink))
                part = shown.convert("RGB").resize(target, Picture.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        except (OSError, ValueError, SyntaxError, ZeroDivisionError, Picture.DecompressionBombError):
            self.note_missing(image_id, file_name)
            return None
        encoded = io.BytesIO()
        part.save(encoded, "JPEG", quality=_QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"

    def _find(self, image_id: Id | None, file_name: str | None) -> Path:
        wanted = parts(str(image_id) if file_name is None else file_name)
        found = self._by_stem.get(wanted[-1:], [])
        for depth in range(len(wanted), 0, -1):
            if len(fitting := [path for name, path in found if name[-depth:] == wanted[-depth:]]) == 1:
                return fitting[0]
            if fitting:
                break
        raise FileNotFoundError

    def note_missing(self, image_id: Id | None, file_name: str | None) -> None:
        """Notes that the picture of an image was wanted and is not there."""
        self.missing[str(image_id) if file_name is None else file_name] = None


def _upright(picture: Picture.Image, size: tuple[float, float] | None) -> Picture.Image:
    """The picture as it is shown, or as it is stored where only that fits the size that its labels know."""
    turned = picture.getexif().get(_ORIENTATION) in _TURNED
    if size is not None and turned and size == picture.size != picture.size[::-1]:
        return picture
    return ImageOps.exif_transpose(picture)


def sized(source: Source, pictures: Pictures) -> Source:
    """The same source, with the sizes of pictures where it does not know them."""

    def images() -> Iterator[Annotations]:
        for image in source:
            if image.width is not None or (size := pictures.size(image.image_id, image.file_name)) is None:
                yield image
            elif image.relative:
                yield placed(image, *size)
            else:
                yield replace(image, width=size[0], height=size[1])

    return replace(source, images=images())
