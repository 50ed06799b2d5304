"""The page of the demo: what it writes, and that a server answers with it."""

from __future__ import annotations

import re
import socket

import pytest

pytest.importorskip("gradio", reason="the page needs gradio, the extra `demo`")

from gradio_client import Client

from hf_rlae.cli.main import main
from hf_rlae.cli.web_demo import BY_HAND, CERTAIN, CHOICES, EQUAL, LEARNED, build_demo, coloured, write
from hf_rlae.reports import TracedToken

SOLVED = "5*3=15; 7+15=22. 22"


def text_of(page):
    return re.sub(r"<[^>]+>", "", page.split("</p>", 1)[1])


@pytest.mark.parametrize("kind", ["different", "shared"])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_weights_writes(kind, choice):
    page, figure, table = write("7+5*3=", kind, choice, 0, 0, 1, 2)
    assert text_of(page).startswith("7+5*3= ")
    assert (SOLVED in text_of(page)) == (choice == LEARNED)
    assert len(figure.axes) == 1
    weights = {tuple(row[2:]) for row in table["data"]}
    expected = {BY_HAND: {("0.00", "0.00", "1.00")}, EQUAL: {("0.33", "0.33", "0.33")}}
    assert weights == expected[choice] if choice in expected else len(weights) > 1
    assert choice in (LEARNED, BY_HAND, EQUAL, CERTAIN)


def test_text_is_never_markup():
    token = TracedToken(0, b"<script>\"'&", 0, (1.0, 0.0), (-0.5, float("-inf")))
    page = coloured("<b>", ["<i>", "second"], [token])
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "weight 0.00, cannot say it" in page


@pytest.mark.parametrize("prompt", ["", "\N{SNOWMAN}"])
def test_prompts_that_cannot_be_read_are_told(prompt):
    page, figure, table = write(prompt, "shared", EQUAL, 1, 1, 1, 2)
    assert page.startswith("<p>")
    assert (figure is None) == (table is None)
    if not prompt:
        assert "empty" in page


def test_a_port_that_is_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--web", "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err == f"hf-rlae: error: --port {port} is in use; give another one, or 0 for a free one\n"
    )


@pytest.mark.slow
def test_the_server_answers_on_the_loopback(monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = build_demo()
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        shown, picture, table = Client(url, verbose=False).predict(
            "7+5*3=", "different", LEARNED, 0, 0, 0, 2, api_name="/write"
        )
    finally:
        page.close()
    assert SOLVED in text_of(shown)
    assert picture["plot"].startswith("data:image/")
    assert table["headers"][2:] == ["addition-characters", "subtraction-bytes", "multiplication-pieces"]
