"""Bearer tokens: which client each belongs to."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from boxloss_server.security.files import contents

_FLAG = "--tokens-file"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""RFC 6750's, and so long that nobody guesses it."""


class Tokens:
    """The tokens that a server knows.

    Args:
        clients: names of the clients, by token.
    """

    def __init__(self, clients: Mapping[str, str]) -> None:
        # Digests are all of one length, so that the time of a comparison tells nothing.
        self._clients = [(_digest(token), client) for token, client in clients.items()]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of lines: a client's name and its token, or two tokens while one takes the other's place.

        Names and tokens have spaces between them. Empty lines, and those that start with #, mean nothing.

        Raises:
            OSError: it cannot be read.
            ValueError: a line is wrong, or there is none. The message has the line's number and no token.
        """
        try:
            text = contents(_FLAG, path).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{_FLAG} {path}: is not UTF-8 text") from None
        clients: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            name, *tokens = line.split() or ["#"]
            if name.startswith("#"):
                continue
            place = f"{_FLAG} {path}, line {number}"
            if not 1 <= len(tokens) <= 2:
                raise ValueError(f"{place}: write a client's name, a space and its token")
            if name in clients.values():
                raise ValueError(f"{place}: the client is there already; a client has one line, with up to two tokens")
            for token in tokens:
                if not _TOKEN.fullmatch(token):
                    raise ValueError(f"{place}: a token has 16 characters or more, of A-Z a-z 0-9 . _ ~ + / -")
                if token in clients:
                    raise ValueError(f"{place}: the token is there already; each belongs to one client")
                clients[token] = name
        if not clients:
            raise ValueError(f"{_FLAG} {path}: names no client; write a line with a name, a space and a token")
        return cls(clients)

    def client(self, token: str) -> str | None:
        """The client that a token belongs to, found in a time that tells nothing about the tokens."""
        digest = _digest(token)
        found = None
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
