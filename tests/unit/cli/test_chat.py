"""`hf-rlae chat`: turns, commands, and what stops an answer."""

from __future__ import annotations

import io
import os
import signal
import sys

import pytest

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.cli import chatting
from hf_rlae.cli.main import main
from hf_rlae.cli.streaming import ContinuationStreamer
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, unigram

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
WEIGHTS = [0.7, 0.3]
TOKENS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two members with two tokenizers that can chat, as folders."""
    found = []
    for seed, tokenizer in enumerate((byte_level_bpe(), unigram())):
        folder = tmp_path_factory.mktemp(f"member{seed}")
        for saved in pair("llama", seed, tokenizer, max_position_embeddings=256, initializer_range=0.5):
            saved.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        found.append(str(folder))
    return found


@pytest.fixture
def chat(folders, monkeypatch, capsys):
    """Runs the command with lines on standard input; returns the exit code and what it wrote."""

    def run(*lines: str, arguments: tuple[str, ...] = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        weights = ",".join(map(str, WEIGHTS))
        capsys.readouterr()  # loading in the test itself shows progress bars
        options = ["--weights", weights, "--max-new-tokens", str(TOKENS), "--device", "cpu", *arguments]
        code = main(["chat", *folders, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def replies(folders, *messages: str, start=()) -> list[str]:
    """The same conversation from the Python API."""
    ensemble = EnsembleForCausalLM.from_members(folders, policy=StaticPolicy(WEIGHTS))
    talk, found = list(start), []
    for message in messages:
        talk.append({"role": "user", "content": message})
        inputs = ensemble.tokenizer.apply_chat_template([talk], add_generation_prompt=True)
        ids = ensemble.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        reply = ensemble.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(reply.rstrip("\N{REPLACEMENT CHARACTER}"))  # half of a character is never shown
        talk.append({"role": "assistant", "content": found[-1].strip()})
    return found


def test_every_answer_follows_from_the_whole_conversation(chat, folders):
    expected = replies(folders, "Hello", "And then?")
    assert chat("Hello", "And then?") == (0, "".join(f"{reply}\n" for reply in expected), "")
    assert expected[1] != replies(folders, "And then?")[0]


def test_a_system_message_begins_the_conversation(chat, folders):
    start = [{"role": "system", "content": "Be brief."}]
    assert chat("Hello", arguments=("--system", "Be brief."))[1] == replies(folders, "Hello", start=start)[0] + "\n"


def test_reset_forgets_the_conversation(chat, folders):
    first = replies(folders, "Hello")[0]
    assert chat("Hello", "", "/reset", "Hello", "/exit", "never read")[1] == f"{first}\n" * 2


def test_weights_show_who_wrote_the_last_answer(chat, folders):
    code, out, err = chat("Hello", "/weights")
    assert (code, err) == (0, "")
    first, shown = out.split("\n", 1)
    assert first == replies(folders, "Hello")[0].split("\n")[0]
    assert shown.count("0.70") == shown.count("0.30") == 1  # one span of 6 tokens
    assert all(os.path.basename(folder)[:8] in shown for folder in folders)


def test_help_lists_the_commands(chat):
    assert [line.split()[0] for line in chat("/help")[1].splitlines()] == list(chatting.COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/wieghts", "did you mean '/weights'?"),
        ("/weights", "there is no answer yet"),
        ("word " * 300, "the prompt has"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_chat_goes_on(chat, folders, line, said):
    code, out, err = chat(line, "Hello")
    assert (code, out) == (0, replies(folders, "Hello")[0] + "\n")
    assert err.startswith("hf-rlae: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_control_c_stops_the_answer_and_not_the_chat(chat, folders, monkeypatch):
    put, seen, before = ContinuationStreamer.put, [], signal.getsignal(signal.SIGINT)

    def interrupted(self, value):
        put(self, value)
        seen.append(value)
        if len(seen) == 3:  # the prompt and two tokens
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ContinuationStreamer, "put", interrupted)
    code, out, _ = chat("Hello", "/weights", "/reset", "Hello")
    assert code == 0
    assert len(seen) == 3 + 1 + 1 + TOKENS  # transformers writes one token more
    assert out.endswith(replies(folders, "Hello")[0] + "\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_control_c_ends_the_chat(chat, monkeypatch):
    def interrupted(self, value):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ContinuationStreamer, "put", interrupted)
    assert chat("Hello", "Hello")[::2] == (130, "hf-rlae: interrupted\n")


def test_members_that_cannot_chat_are_refused_before_anybody_types(tmp_path, capsys, monkeypatch):
    for saved in pair("llama", 0, unigram()):
        saved.save_pretrained(tmp_path)
    capsys.readouterr()  # saving shows a progress bar
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main(["chat", str(tmp_path), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-rlae: error: chat: the tokenizer of member ")
    assert "--chat-template" in error
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    options = ["--chat-template", str(tmp_path / "own.jinja"), "--max-new-tokens", "2", "--device", "cpu"]
    assert main(["chat", str(tmp_path), *options]) == 0
