"""JSON files that may be much larger than what is wanted of them.

msgspec checks a file in one pass and leaves its parts as text until each is asked for with its type: polygons are never
built, one bad part leaves the others alone, and the memory map keeps the text out of the heap. A streaming parser
(ijson) needs three passes for COCO, whose lists come in any order, and hands out the front of a broken file as a whole.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from boxloss.files.formats.request import Request

Document: TypeAlias = list[msgspec.Raw] | dict[str, msgspec.Raw]
T = TypeVar("T")


def load(request: Request) -> Document | None:
    """The parts of the file; None, after a report, if it is no JSON list or object."""
    try:
        content = _content(request.path)
    except OSError as error:
        request.problem("", f"cannot be read: {error.strerror}", "correct that", "file")
        return None
    try:
        return _parts(content)
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = complaint(error) if isinstance(error, msgspec.MsgspecError) else "nested too deeply"
    try:
        constants: list[str] = []
        # Python writes NaN and Infinity, which JSON does not have; its own reader takes them, for more memory.
        document = _parts(msgspec.json.encode(json.loads(content[:], parse_constant=constants.append)))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        request.problem("", f"is not a JSON list or object: {reason}", "give a whole JSON file", "file")
        return None
    if constants:
        what = f"holds {' and '.join(sorted(set(constants)))} {len(constants)} times, read as null"
        request.problem("", what, "write numbers: JSON has no others")
    return document


def part(raw: Any, kind: type[T]) -> T:
    """Reads a part.

    Raises:
        msgspec.MsgspecError: it is not of that kind; the message says what is.
    """
    return msgspec.json.decode(raw, type=kind)


def complaint(error: msgspec.MsgspecError) -> str:
    """What msgspec says, as the end of a sentence that begins with the place."""
    text = str(error).replace("`", "").replace(" - at $.", " in ").replace(" - at $", " in ")
    return text[:1].lower() + text[1:]


def _content(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if file.read(3) == b"\xef\xbb\xbf" or not file.seek(0, 2):
            return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _parts(content: mmap.mmap | bytes) -> Document:
    return msgspec.json.decode(content, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
