"""A real name server, for tests of clients that find replicas by a name."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Self

import dns.message
import dns.rdatatype
import dns.rrset


class NameServer:
    """Tells the IPv4 addresses of any name it is asked for, on a free UDP port.

    Attributes:
        hosts: the addresses; change them at will.
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, *hosts: str) -> None:
        self.hosts = list(hosts)
        names = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, socket = self.request
                response = dns.message.make_response(dns.message.from_wire(data))
                question = response.question[0]
                if question.rdtype == dns.rdatatype.A and names.hosts:
                    response.answer.append(dns.rrset.from_text_list(question.name, 0, "IN", "A", names.hosts))
                socket.sendto(response.to_wire(), self.client_address)

        self._server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
