"""HTTP/2 in the raw: a client that does what no gRPC library does."""

from __future__ import annotations

import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, RemoteSettingsChanged
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

_TIMEOUT = 30.0


class Http2Client:
    """A connection that does nothing which it is not told to do.

    Args:
        port: of a server on this machine.
        window: bytes of an answer that the server may send before the client has read any.
    """

    def __init__(self, port: int, window: int = 65535) -> None:
        self.http2 = H2Connection(H2Configuration(client_side=True))
        # To h2 a GOAWAY is the end; to HTTP/2, and to gRPC, what is under way goes on.
        self.http2._frame_dispatch_table[GoAwayFrame] = lambda frame: ([], [ConnectionTerminated()])
        self.http2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
        self.http2.initiate_connection()
        self._flush()
        self.read_until(RemoteSettingsChanged)

    def start(self, method: str, *headers: tuple[str, str]) -> int:
        """Begins a call of a method of LossService, or of a path that starts with "/"; returns its number."""
        call = self.http2.get_next_available_stream_id()
        path = method if method.startswith("/") else f"/boxloss.v1.LossService/{method}"
        pseudo = (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")
        self.http2.send_headers(call, [*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *headers])
        self._flush()
        return call

    def send(self, call: int, message: Message, share: float = 1.0, last: bool = True) -> None:
        """Sends a message, or a share of it, as far as the server takes it within a while."""
        content = message.SerializeToString()
        frame = struct.pack(">BI", 0, len(content)) + content
        frame = frame[: int(len(frame) * share)]
        while frame:
            size = min(len(frame), self.http2.local_flow_control_window(call), self.http2.max_outbound_frame_size)
            if size:
                self.http2.send_data(call, frame[:size])
                self._flush()
                frame = frame[size:]
            else:
                self.read()
        if last and share == 1:
            self.http2.end_stream(call)
            self._flush()

    def ping(self) -> None:
        """Asks whether the server is there."""
        self.http2.ping(b"01234567")
        self._flush()

    def grant(self, size: int) -> None:
        """Lets the server send so many bytes more over the connection, of whichever answers."""
        self.http2.increment_flow_control_window(size)
        self._flush()

    def read(self) -> list[Event]:
        """What the server sends next; answers its pings.

        Raises:
            EOFError: the server has closed the connection.
        """
        data = self.socket.recv(2**16)
        if not data:
            raise EOFError
        events = self.http2.receive_data(data)
        self._flush()
        return events

    def read_until(self, kind: type[Event], count: int = 1) -> list[Event]:
        """All that the server sends up to so many events of a kind."""
        events: list[Event] = []
        while sum(isinstance(event, kind) for event in events) < count:
            events += self.read()
        return events

    def read_for(self, seconds: float) -> None:
        """Reads what the server sends within so many seconds, if anything."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                self.read()
        self.socket.settimeout(_TIMEOUT)

    def until_closed(self) -> None:
        """Waits until the server closes the connection, answering nothing."""
        try:
            while self.socket.recv(2**16):
                pass
        except ConnectionResetError:
            pass

    def reset(self) -> None:
        """Drops the connection, as a machine that crashes would when it is back."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Ends the connection without a word."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        self.socket.sendall(self.http2.data_to_send())
