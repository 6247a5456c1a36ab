"""Exits 0 where the server in this container, or the service that is its argument, serves: the image's HEALTHCHECK.

Asks the port of BOXLOSS_PORT, and with TLS where BOXLOSS_TLS_CERTIFICATE is set, so set these rather than flags. Trusts
whatever certificate the server shows. With BOXLOSS_TLS_CLIENT_CA it has none to show itself, and a server that greets
it must do.
"""

import os
import socket
import ssl
import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

_PATIENCE = 3
_HOST, _PORT = "127.0.0.1", int(os.environ.get("BOXLOSS_PORT", "50051"))
_SERVICE = "".join(sys.argv[1:2])
_OPTIONS = [("grpc.enable_http_proxy", 0)]

address = f"{_HOST}:{_PORT}"


def over_tls() -> grpc.Channel:
    """A channel that trusts the server's certificate, and takes it for that of the name in it."""
    shown = ssl.get_server_certificate((_HOST, _PORT), timeout=_PATIENCE)
    context = ssl.create_default_context(cadata=shown)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with socket.create_connection((_HOST, _PORT), _PATIENCE) as plain, context.wrap_socket(plain) as connection:
        names = [str(each[1]) for each in (connection.getpeercert() or {}).get("subjectAltName", ())]
    credentials = grpc.ssl_channel_credentials(shown.encode())
    override = [("grpc.ssl_target_name_override", name.replace("*", "any")) for name in names[:1]]
    return grpc.secure_channel(address, credentials, _OPTIONS + override)


try:
    if os.environ.get("BOXLOSS_TLS_CLIENT_CA"):
        ssl.get_server_certificate((_HOST, _PORT), timeout=_PATIENCE)
        sys.exit()
    tls = os.environ.get("BOXLOSS_TLS_CERTIFICATE")
    with over_tls() if tls else grpc.insecure_channel(address, _OPTIONS) as channel:
        status = HealthStub(channel).Check(HealthCheckRequest(service=_SERVICE), timeout=_PATIENCE).status
except OSError as error:
    sys.exit(f"{address}: {error}")
except grpc.RpcError as error:
    sys.exit(f"{address}: {error.code().name}: {error.details()}")
if status != HealthCheckResponse.SERVING:
    sys.exit(f"{address}: {HealthCheckResponse.ServingStatus.Name(status)}")
