"""Losses as text: `ciou`, `smooth_l1:beta=0.5`, `alpha_iou:base=ciou(gate=0.5),alpha=2`."""

from __future__ import annotations

import ast
import difflib
from dataclasses import MISSING, fields
from typing import Any

from boxloss.errors import fault
from boxloss.losses import CATALOGUE, Base, Loss
from boxloss.losses.parameters import Switch


def parse(text: str) -> Loss:
    """Reads a loss. Parameters follow its name after a colon or in brackets; a loss within a loss takes brackets.

    Raises:
        InvalidInputError: the text does not name a loss of the catalogue with parameters in range.
    """
    text = text.strip()
    name, colon, parameters = text.partition(":")
    try:
        # The notation is that of a Python call, so Python's grammar reads it.
        expression = ast.parse(f"{name}({parameters})" if colon else text, mode="eval").body
        return _loss(expression)
    except SyntaxError:
        problem = "cannot be read; write it as smooth_l1:beta=0.5 or alpha_iou:base=ciou(gate=0.5),alpha=2"
    except ValueError as error:
        problem = str(error)
    raise fault(f"--loss {text}", problem)


def label(loss: Loss) -> str:
    """Writes a loss as `parse` reads it, without the parameters that have their default."""
    inner = _parameters(loss)
    return f"{loss.name}:{inner}" if inner else loss.name


def _loss(node: ast.expr) -> Loss:
    match node:
        case ast.Name(name):
            keywords: list[ast.keyword] = []
        case ast.Call(ast.Name(name), [], keywords):
            pass
        case _:
            raise SyntaxError
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE)
        meant = f"did you mean {' or '.join(near)}? There are" if near else "choose one of"
        raise ValueError(f"there is no loss {name!r}; {meant} {', '.join(CATALOGUE)}")
    known = {each.name: each for each in fields(CATALOGUE[name])}
    values: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg not in known:
            raise ValueError(f"{name} has no parameter {keyword.arg!r}; it has {', '.join(known) or 'none'}")
        if keyword.arg in values:
            raise ValueError(f"{keyword.arg} is given twice")
        values[keyword.arg] = _value(keyword.value, known[keyword.arg].metadata["kind"])
    for each in known.values():
        if each.default is MISSING and each.name not in values:
            raise ValueError(f"{name} needs {each.name}, for example {name}:{each.name}=ciou")
    return CATALOGUE[name](**values)


def _value(node: ast.expr, kind: object) -> Any:
    """The value of a parameter; its range is checked by the loss."""
    match kind, node:
        case Base(), _:
            return _loss(node)
        case Switch(), ast.Name(("true" | "false") as word):
            return word == "true"
        case _, ast.Name(word):
            return word
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SyntaxError from None


def _parameters(loss: Loss) -> str:
    return ",".join(
        f"{each.name}={_text(value)}" for each in fields(loss) if (value := getattr(loss, each.name)) != each.default
    )


def _text(value: object) -> str:
    match value:
        case Loss():
            inner = _parameters(value)
            return f"{value.name}({inner})" if inner else value.name
        case bool():
            return str(value).lower()
        case float():
            return repr(value).removesuffix(".0")
        case _:
            return str(value)
