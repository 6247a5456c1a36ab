"""Several server processes on one port: a supervisor starts them, keeps them and adds up their metrics.

The supervisor computes nothing and loads neither torch nor gRPC; `child` is what the others run.
"""

from boxloss_server.processes.endpoint import serve_metrics
from boxloss_server.processes.supervisor import Supervisor

__all__ = ["Supervisor", "serve_metrics"]
