"""Names of pictures, as different tools write them for the same picture."""

from __future__ import annotations

_PICTURES = frozenset(
    ".avif .bmp .dng .gif .heic .jp2 .jpeg .jpg .mpo .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
_FILES = _PICTURES | {".json", ".txt", ".xml"}


def is_picture(name: str) -> bool:
    """Whether the name ends as a picture's does."""
    return _ending(name) in _PICTURES


def parts(name: str) -> tuple[str, ...]:
    """The folders and the stem of a name, for example ("train", "7") for "train/7.jpg", with slashes of either kind.

    Only endings of pictures and of annotation files are left out: the stem of "scene.12" is "scene.12".
    """
    pieces = [piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".")]
    if pieces:
        last = pieces[-1]
        while (ending := _ending(last)) in _FILES:
            last = last[: -len(ending)]
        pieces[-1] = last
    return tuple(pieces)


def _ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""
