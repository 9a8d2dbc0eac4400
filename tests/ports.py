"""Where processes of a test meet.

Lightning asks the system for a free port and leaves it in MASTER_PORT for whatever the same process starts later; until
it listens, the system may give that port to any other connection. So each test gets its own, from those that Linux
gives to nobody unless it was told to (net.ipv4.ip_local_port_range begins at 32768).
"""

from __future__ import annotations

import itertools
import os
import socket

_LOWEST, _MANY = 10_000, 20_000
# Sessions and workers of pytest that run at the same time begin at different places.
_candidates = (_LOWEST + place % _MANY for place in itertools.count(os.getpid() * 997))


def free_port() -> int:
    """One that was not given before in this process and that nothing listens at."""
    for port in _candidates:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("ports never run out")
