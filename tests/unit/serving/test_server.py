"""The server over the loopback, with the real client of OpenAI: texts, streams, chats, errors and limits."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import sys
import threading
import time

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, unigram

openai = pytest.importorskip("openai", reason="hf-rlae serve needs the extra serve")
pytest.importorskip("fastapi", reason="hf-rlae serve needs the extra serve")
pytest.importorskip("uvicorn", reason="hf-rlae serve needs the extra serve")

from hf_rlae.serving import completion_job  # noqa: E402
from hf_rlae.serving.limits import Limits  # noqa: E402
from tests.support.servers import serving  # noqa: E402

PROMPT = "Once upon a time"
HELLO = [{"role": "user", "content": "Hello"}]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
SMALL = Limits(body_bytes=2000, requests=2, body_seconds=0.3, request_seconds=20, connections=16, idle_seconds=0.4)
CONTEXT = 128


@pytest.fixture(scope="module")
def ensemble():
    """Two members with two tokenizers."""
    members = [
        pair("llama", seed, tokenizer, max_position_embeddings=CONTEXT, initializer_range=0.5)
        for seed, tokenizer in enumerate((byte_level_bpe(), unigram()))
    ]
    found = EnsembleForCausalLM.from_members(members, StaticPolicy([0.6, 0.4]), span_length=4)
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def port(ensemble):
    with serving(ensemble, SMALL, max_new_tokens=100) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(ensemble, prompt=PROMPT, **options) -> str:
    """The continuation from `generate`."""
    if isinstance(prompt, str):
        inputs = ensemble.tokenizer([prompt], return_tensors="pt")
    else:
        inputs = ensemble.tokenizer.apply_chat_template([prompt], add_generation_prompt=True)
    ids = ensemble.generate(**inputs, max_new_tokens=12, **options)
    text = ensemble.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")  # half of a character is not sent


def complete(client, prompt=PROMPT, **options):
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 12, **options})


def test_the_text_is_that_of_generate(client, ensemble):
    answer = complete(client)
    assert answer.choices[0].text == expected(ensemble)
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert usage.prompt_tokens == len(ensemble.tokenizer(PROMPT).input_ids)
    assert (usage.completion_tokens, usage.total_tokens) == (12, 12 + usage.prompt_tokens)
    assert answer.model == "tiny"


def test_a_stream_is_the_same_text_in_pieces(client, ensemble):
    *pieces, last = complete(client, stream=True)
    texts = [piece.choices[0].text for piece in pieces]
    assert "".join(texts) == expected(ensemble)
    assert sum(map(bool, texts)) > 3
    assert last.choices[0].finish_reason == "length"
    assert last.usage == complete(client).usage


def test_chats_are_rendered_by_the_templates(client, ensemble):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 12}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected(ensemble, HELLO)
    *pieces, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected(ensemble, HELLO)
    assert last.usage == answer.usage


def test_samples_repeat_with_a_seed_and_leave_the_others_random(client, ensemble):
    texts = [complete(client, temperature=1.5, top_p=0.99, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(1)
    assert texts[0] == expected(ensemble, do_sample=True, temperature=1.5, top_p=0.99, top_k=0)
    torch.manual_seed(5)
    without = [complete(client, temperature=1.5).choices[0].text]
    torch.manual_seed(5)
    complete(client, temperature=1.5, seed=1)
    assert without == [complete(client, temperature=1.5).choices[0].text]


def test_the_text_ends_before_a_stop_string(client, ensemble):
    whole = expected(ensemble)
    stop = whole[4:6]
    for stream in (False, True):
        answer = complete(client, stop=["never there", stop], stream=stream)
        pieces = list(answer) if stream else [answer]
        assert "".join(piece.choices[0].text for piece in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].choices[0].finish_reason == "stop"
        assert pieces[-1].usage.completion_tokens < 12


def test_a_text_that_ends_by_itself_says_stop(ensemble):
    single = EnsembleForCausalLM.from_members(ensemble.members[:1])
    inputs = single.tokenizer([PROMPT], return_tensors="pt")
    single.generation_config.eos_token_id = int(single.generate(**inputs, max_new_tokens=1)[0, -1])
    with serving(single) as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        answer = complete(client)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == 1


def test_the_models_are_the_ensemble(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_errors_have_words_and_no_traceback(client):
    cases = [
        (404, {"model": "large"}, "there is no model 'large' here; this server has 'tiny'"),
        (400, {"prompt": ""}, "is empty"),
        (400, {"prompt": "word " * CONTEXT}, "the prompt has"),
        (400, {"prompt": "word " * CONTEXT, "stream": True}, "the prompt has"),
        (400, {"n": 3}, "n: only 1 is supported"),
        (400, {"max_tokens": 101}, "at most 100 tokens"),
        (400, {"extra_body": {"generation_config": '{"min_new_tokens": 100, "top_k": -1}'}}, "top_k=-1"),
    ]
    for status, options, said in cases:
        with pytest.raises(openai.APIStatusError) as error:
            complete(client, **options)
        assert error.value.status_code == status, options
        assert said in error.value.body["message"]
        assert "Traceback" not in error.value.response.text


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


RAW = [
    (400, "POST", "/v1/completions", b"{", {}),
    (400, "POST", "/v1/completions", b"[1]", {}),
    (400, "POST", "/v1/completions", b"", {}),
    (400, "POST", "/v1/completions", b"\xff\xfe", {}),
    (400, "POST", "/v1/completions", b"[" * 1900, {}),
    (400, "POST", "/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}', {}),
    (400, "POST", "/v1/completions", b'{"model": "tiny", "prompt": "x"}', {"Content-Type": "text/plain"}),
    (400, "GET", "/v1/models", b"", {"Host": "evil.example"}),
    (404, "GET", "/nothing", b"", {}),
    (404, "POST", "/reset", b"{}", {}),
    (404, "POST", "/v1/responses", b"{}", {}),
    (405, "GET", "/v1/completions", b"", {}),
    (413, "POST", "/v1/completions", b"x" * 3000, {}),
    (200, "GET", "/health", b"", {}),
]


@pytest.mark.parametrize(("status", "method", "path", "body", "headers"), RAW, ids=range(len(RAW)))
def test_whatever_is_sent_is_answered(port, status, method, path, body, headers):
    found, answer = send(port, method, path, body, **headers)
    assert found == status, answer
    assert b"Traceback" not in answer
    if status >= 400 and "Host" not in headers:
        assert json.loads(answer)["error"]["message"]


def test_transformers_chat_finds_the_model_loaded(port):
    assert b'"status": "ready"' in send(port, "POST", "/load_model", b'{"model": "tiny"}')[1]
    assert b'"status": "error"' in send(port, "POST", "/load_model", b'{"model": "other"}')[1]


def test_bodies_without_a_length_are_bounded_too(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    chunks = (b"x" * 100 for _ in range(100))
    connection.request("POST", "/v1/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def slow(port: int, sent: bytes) -> bytes:
    """What a client gets that sends a part of a request and waits."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        return connection.makefile("rb").read()


def test_slow_clients_are_cut_off(port):
    assert slow(port, b"") == slow(port, b"GET /v1/mod") == b""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = slow(port, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"has not arrived in 0.3 s" in answer


@pytest.fixture
def held(monkeypatch):
    """Requests generate only after the event is set."""
    gate, run = threading.Event(), completion_job.CompletionJob.run

    def wait(self):
        gate.wait(10)
        run(self)

    monkeypatch.setattr(completion_job.CompletionJob, "run", wait)
    yield gate
    gate.set()


def test_too_many_requests_are_told_to_wait(client, held):
    statuses = []

    def ask():
        try:
            complete(client)
            statuses.append(200)
        except openai.APIStatusError as error:
            statuses.append(error.status_code)
            held.set()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 429]


def test_what_takes_too_long_ends(ensemble, held):
    limits = Limits(request_seconds=0.2)
    with (
        serving(ensemble, limits) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError) as error:
            complete(client)
        assert error.value.status_code == 504
        held.set()
        assert complete(client, max_tokens=1).usage.completion_tokens == 1


def test_a_client_that_leaves_ends_its_request(port, client, monkeypatch):
    ended = []
    run = completion_job.CompletionJob.run

    def noted(self):
        run(self)
        ended.append(self.completion_tokens)

    monkeypatch.setattr(completion_job.CompletionJob, "run", noted)
    put = completion_job.CompletionJob.put
    monkeypatch.setattr(completion_job.CompletionJob, "put", lambda self, value: (time.sleep(0.05), put(self, value)))
    stream = complete(client, max_tokens=90, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended
    assert ended[0] < 90


def test_errors_do_not_name_folders(ensemble, client, monkeypatch):
    monkeypatch.setattr(ensemble.members[0], "name", "/home/someone/models/first")
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, prompt="word " * CONTEXT)
    assert "for member first," in error.value.body["message"]


def test_a_missing_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find_spec(name))
    monkeypatch.delitem(sys.modules, "hf_rlae.serving.server")
    with pytest.raises(
        ImportError, match=r"hf_rlae.serving.server needs uvicorn: install hf_rlae with its extra `serve`"
    ):
        importlib.import_module("hf_rlae.serving.server")
