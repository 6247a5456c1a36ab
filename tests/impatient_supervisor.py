"""A real server whose supervisor waits only four times --hang-timeout-s for a start, however short that is.

python -m tests.impatient_supervisor, with the server's flags.
"""

from __future__ import annotations

from boxloss_server import __main__
from boxloss_server.processes import supervisor

if __name__ == "__main__":
    vars(supervisor)["_SHORTEST_START"] = 0.0
    __main__.main()
