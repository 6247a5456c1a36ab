"""Lines of text files."""

from __future__ import annotations

from pathlib import Path

from boxloss.files.formats.request import Request


def lines(path: Path, request: Request) -> list[tuple[int, str]] | None:
    """The lines that hold something, with their numbers from 1; None, after a report, if the file cannot be read."""
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        request.problem("", "is not text in UTF-8", "save it as UTF-8", "file", path)
    except OSError as error:
        request.problem("", f"cannot be read: {error.strerror}", "correct that", "file", path)
    else:
        return [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    return None


def number(cell: str) -> float | None:
    """A number, with a decimal point or a decimal comma; None if it is none."""
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        return float(cell.replace(",", ".", 1))
    except ValueError:
        return None


def files(root: Path, ending: str) -> list[Path]:
    """The files of a folder and its subfolders with this ending, in any case, sorted; a file is its own only one."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() == ending and path.is_file())


def wanted(request: Request, ending: str) -> list[Path]:
    """The files that are asked for; that there are none is reported."""
    found = files(request.path, ending)
    if not found:
        request.problem("", f"holds no {ending} files", "give a folder that does, or name another format", "file")
    return found


def name_under(root: Path, path: Path) -> str:
    """The name of a file without its ending, as seen from the folder that was asked for."""
    return path.stem if path == root else path.relative_to(root).with_suffix("").as_posix()
