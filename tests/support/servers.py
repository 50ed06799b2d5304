"""A server of an ensemble on a thread of this process, over the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_rlae.serving.limits import Limits
from hf_rlae.serving.server import build_app, build_http_server, listen


@contextmanager
def serving(ensemble: Any, limits: Limits | None = None, **options: Any) -> Iterator[int]:
    """The port of a server that answers until the block ends."""
    sock = listen("127.0.0.1", 0)
    server = build_http_server(build_app(ensemble, "tiny", limits=limits, **options), limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        sock.close()
    assert not thread.is_alive()
