"""`hf-rlae serve` as a process: reachable from this machine alone, bounded in memory, alive after abuse."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pytest

from hf_rlae.zoo.loader import MEMBER_SETS, MEMBERS_FOLDER
from tests.support.tiers import show_figure

pytest.importorskip("openai", reason="hf-rlae serve needs the extra serve")
pytest.importorskip("fastapi", reason="hf-rlae serve needs the extra serve")
pytest.importorskip("uvicorn", reason="hf-rlae serve needs the extra serve")

pytestmark = pytest.mark.slow
DEMO = [str(MEMBERS_FOLDER / name) for name in MEMBER_SETS["different"]]
MOST_MB = 50
ASKED = json.dumps({"model": "demo", "prompt": "5*3=", "max_tokens": 16}).encode()
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    """The process and its port."""
    command = [
        sys.executable,
        "-m",
        "hf_rlae",
        "serve",
        *DEMO,
        "--port",
        "0",
        "--model-name",
        "demo",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 300)
    line = process.stdout.readline() if ready else ""
    found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
    assert found, process.communicate(timeout=10)
    yield process, int(found.group(1))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.startswith("hf-rlae: warning: /v1/chat/completions will be refused: ")  # no chat template
    assert err.count("\n") == 1


def ask(port: int, body: bytes = ASKED) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def megabytes(process: subprocess.Popen[str]) -> float:
    return psutil.Process(process.pid).memory_info().rss / 2**20


def test_the_server_is_local_and_bounded(server):
    process, port = server
    listening = [c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as scan:
            scan.settimeout(5)
            assert address.startswith("127.") or scan.connect_ex((address, port)) != 0
    for _ in range(3):
        assert ask(port) == 200
    before = megabytes(process)
    statuses = Counter(ask(port, b"x" * 10_000_000) for _ in range(20))
    assert statuses == {413: 20}
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(port))) for _ in range(200)]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in silent:
        connection.close()
    counted = Counter(answers)
    assert set(counted) <= {200, 429}
    assert sum(counted.values()) == 200
    assert counted[200] >= 8
    assert ask(port) == 200
    grown = megabytes(process) - before
    show_figure(
        f"20 bodies of 10 MB refused, {counted[200]} of 200 parallel requests answered, {counted[429]} told to wait, "
        f"50 silent clients: {grown:+.1f} MB; listens on 127.0.0.1 alone"
    )
    assert grown < MOST_MB


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(server):
    command = [sys.executable, "-m", "hf_rlae", "serve", *DEMO, "--port", str(server[1])]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 2
    assert done.stderr.startswith(f"hf-rlae: error: cannot listen on 127.0.0.1, port {server[1]}: ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 120
