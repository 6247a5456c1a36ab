"""Exits 0 where the server in this container serves; the Dockerfile's HEALTHCHECK.

Asks the port of BOXLOSS_PORT, so set that rather than --port to serve on another one.
"""

import os
import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

address = f"127.0.0.1:{os.environ.get('BOXLOSS_PORT', '50051')}"
with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
    try:
        status = HealthStub(channel).Check(HealthCheckRequest(), timeout=3).status
    except grpc.RpcError as error:
        sys.exit(f"{address}: {error.code().name}: {error.details()}")
if status != HealthCheckResponse.SERVING:
    sys.exit(f"{address}: {HealthCheckResponse.ServingStatus.Name(status)}")
