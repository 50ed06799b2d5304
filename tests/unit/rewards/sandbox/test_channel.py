from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from hf_rlae.rewards.sandbox.channel import MAX_LINE_BYTES, Channel, ChannelError, LineReader, to_line


def read(*pieces: bytes) -> list[dict]:
    reader, found = LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (message := reader.next_message()) is not None:
            found.append(message)
    return found


def test_messages_arrive_in_any_pieces():
    messages = [{"text": "a\nb"}, {}, {"numbers": [1, 2.5, None]}]
    data = b"".join(map(to_line, messages))
    assert read(data) == messages
    assert read(*(data[at : at + 1] for at in range(len(data)))) == messages
    assert read(data[:-1]) == messages[:-1]


WRONG = {
    "no JSON": b"text\n",
    "an empty line": b"\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "two objects": b"{}{}\n",
    "no text": b'{"\xff": 1}\n',
    "a long number": b'{"a":' + b"9" * 10_000 + b"}\n",
    "a deep list": b'{"a":' + b"[" * 100_000 + b"\n",
    "a pickle": b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\n",
    "a long line": b" " * MAX_LINE_BYTES + b"{}\n",
    "a line without an end": b" " * (MAX_LINE_BYTES + 1),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ChannelError):
        read(data)


@pytest.mark.parametrize("message", [{"a": b"bytes"}, {"a": object()}, {"a": "x" * MAX_LINE_BYTES}, {"a": {1, 2}}])
def test_what_does_not_fit_is_not_sent(message):
    with pytest.raises(ChannelError):
        to_line(message)


def test_a_channel_sends_and_receives_until_the_other_side_closes():
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.fileno())
    large = {"text": "x" * 1_000_000}
    sender = threading.Thread(target=lambda: ours.sendall(to_line(large) + to_line({"next": 1})))
    sender.start()
    assert channel.receive() == large
    assert channel.receive() == {"next": 1}
    sender.join()
    channel.send({"back": 2})
    assert json.loads(os.read(ours.fileno(), 100)) == {"back": 2}
    ours.close()
    assert channel.receive() is None
    theirs.close()
