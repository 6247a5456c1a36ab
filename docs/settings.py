"""Writes the table of settings in docs/operations.md from boxloss_server/settings.py: python docs/settings.py."""

from __future__ import annotations

from itertools import dropwhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from platformdirs import user_cache_path
from pydantic.fields import FieldInfo

from boxloss_server.settings import Settings

PAGE = Path(__file__).parent / "operations.md"
HEAD = "| flag | default | values | |\n| :-- | :-- | :-- | :-- |\n"

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def rows() -> dict[str, str]:
    """The row of each setting."""
    return {name: _row(name, field) for name, field in Settings.model_fields.items()}


def page(text: str) -> str:
    """The page with today's table."""
    before, head, rest = text.partition(HEAD)
    after = dropwhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True))
    return "".join([before, head, *rows().values(), *after])


def _row(name: str, field: FieldInfo) -> str:
    flag = name.replace("_", "-")
    default = _default(field.get_default(call_default_factory=True))
    description = (field.description or "").replace("|", "\\|")
    return f"| `--{flag}` | {default} | {_values(field)} | {description} |\n"


def _default(value: Any) -> str:
    if isinstance(value, Path) and value.is_relative_to(user_cache_path()):
        value = Path("~/.cache") / value.relative_to(user_cache_path())
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        value = f"{value:g}"
    return "" if value in (None, "", (), []) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    kind = next(each for each in kinds if each is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    bounds = {key: getattr(bound, key) for bound in field.metadata for key in _BOUNDS if hasattr(bound, key)}
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{_BOUNDS[key]} {value}" for key, value in bounds.items())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
