"""XML files from anywhere. defusedxml refuses DTDs and with them entities: no bomb goes off, no other file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree

from boxloss.files.formats.request import Request


@contextmanager
def reported(path: Path, request: Request) -> Iterator[None]:
    """Reports what XML may do wrong while it is read."""
    try:
        yield
    except defusedxml.DefusedXmlException:
        request.problem("", "declares a document type or entities", "leave them out: no label needs them", "file", path)
    except (ParseError, ValueError, LookupError) as error:  # The latter two: of an encoding that does not exist.
        request.problem("", f"is not XML from there on: {error}", "give a whole XML file", "file", path)
    except OSError as error:
        request.problem("", f"cannot be read: {error.strerror}", "correct that", "file", path)


def tree(path: Path) -> Element:
    """The root of a small file."""
    root = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
    assert root is not None
    return root


def elements(path: Path) -> Iterator[tuple[Element, Element]]:
    """The root of a large file with each element right below it, one at a time."""
    depth, root = 0, None
    with path.open("rb") as file:
        for event, element in defusedxml.ElementTree.iterparse(file, ("start", "end"), forbid_dtd=True):
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 1:
                yield root, element
                root.clear()


def root_tag(path: Path) -> str:
    """The name of the root; empty if the file is no XML."""
    try:
        with path.open("rb") as file:
            for _, element in defusedxml.ElementTree.iterparse(file, ("start",), forbid_dtd=True):
                return str(element.tag)
    except (defusedxml.DefusedXmlException, ParseError, ValueError, LookupError, OSError):
        pass
    return ""
