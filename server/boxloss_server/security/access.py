"""Access: who may call, and who it is that calls."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc.aio

from boxloss_server.security.files import Files
from boxloss_server.security.tokens import Tokens

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""A call, as its handler sees it."""

_named: ContextVar[str | None] = ContextVar("client", default=None)
"""Whose token came with the call. Each call is a task, and so has a context of its own."""


class Access:
    """Lets callers in by their tokens, and tells clients apart: by token, else by certificate, else by address.

    Args:
        tokens: those that the server knows; None lets everybody in.
        certified: whether callers have shown a certificate.
        by_address: whether connections from one address are one client, where there is neither token nor certificate.
    """

    def __init__(self, tokens: Files[Tokens] | None, certified: bool, by_address: bool) -> None:
        self._tokens = tokens
        self._certified = certified
        self._by_address = by_address

    @property
    def restricted(self) -> bool:
        """Whether calls need a token."""
        return self._tokens is not None

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call with this metadata may come in. Called once at its start, in its task."""
        if self._tokens is None:
            return True
        sent = [value for key, value in metadata if key == "authorization"]
        if len(sent) != 1 or not isinstance(sent[0], str):
            return False
        scheme, _, token = sent[0].partition(" ")
        client = self._tokens.value.client(token) if scheme.lower() == "bearer" else None
        _named.set(client)
        return client is not None

    def client(self, context: Context) -> str:
        """Who makes a call that has come in."""
        if name := _named.get():
            return name
        if self._certified:
            for common_name in context.auth_context().get("x509_common_name", ()):
                return common_name.decode(errors="replace")
        peer: str = context.peer()
        return peer.rpartition(":")[0] if self._by_address else peer
