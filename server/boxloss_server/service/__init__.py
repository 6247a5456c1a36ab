"""The service: gRPC, validation, status codes, metrics and the server's life."""

from boxloss_server.service.server import Server

__all__ = ["Server"]
