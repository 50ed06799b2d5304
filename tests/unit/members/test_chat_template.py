"""Chat templates without bounds are stopped; those of real models render as transformers renders them."""

from __future__ import annotations

import copy
import sys
import threading
import time

import pytest

from hf_rlae import EnsembleForCausalLM, TokenizerError
from hf_rlae.members import chat_template
from hf_rlae.members.chat_template import apply_chat_template
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe

CHAT = [{"role": "user", "content": "the dogs ran"}]

ENDLESS = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "that write": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "in a macro": (
        "{% macro m() %}{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}{% endmacro %}"
        "{{ m() }}"
    ),
    "that grow a text": (
        "{% set ns = namespace(s='x') %}{% for a in range(100000) %}{% for b in range(100000) %}"
        "{% set ns.s = ns.s ~ 'x' %}{% endfor %}{% endfor %}"
    ),
    "recursive": (
        "{% macro m(n) %}{% if n %}{% for a in range(9) %}{{ m(n - 1) }}{% endfor %}{% endif %}{% endmacro %}"
        "{{ m(99) }}"
    ),
    "over messages": "{% for a in range(9999) %}{% for m in messages * 9999 %}{{ m.content }}{% endfor %}{% endfor %}",
    "of jinja2's own": "{{ lipsum(n=9999999) }}",
}
TOO_LARGE = {
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a power of names": "{% set a = 99999 %}{{ a ** a }}",
    "a large number": "{{ 'x' * 10000000000 }}",
    "a large hexadecimal": "{{ 'x' * 0xFFFFFFFFF }}",
    "a large width": "{{ 'x' | center(10_000_000_000) }}",
}
REAL = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "unpacked arguments": "{% macro m(a, b='') %}{{ a }}{{ b }}{% endmacro %}{{ m(1, **{'b': 2}) }}{{ m(**{'a': 3}) }}",
    "stars in text": "**bold** {{ '2 ** 3' }} 99999999999 {{ messages[0].content }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


def with_template(template):
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ENDLESS)
def test_templates_that_do_not_end(name, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 10**6)
    start = time.thread_time()
    with pytest.raises(TokenizerError, match=r"the chat template of member ME takes more than 0\.2 s or writes more"):
        apply_chat_template(with_template(ENDLESS[name]), "ME", CHAT, tokenize=False)
    assert time.thread_time() - start < 5  # in full it would take minutes


@pytest.mark.parametrize("name", TOO_LARGE)
def test_operations_that_nothing_can_stop(name):
    with pytest.raises(TokenizerError, match=r"the chat template of member ME computes with"):
        apply_chat_template(with_template(TOO_LARGE[name]), "ME", CHAT, tokenize=False)
    with pytest.raises(TokenizerError, match="computes with"):
        apply_chat_template(with_template("x"), "ME", CHAT, tokenize=False, chat_template=TOO_LARGE[name])


def test_the_size_is_bounded(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 10**5)
    template = "{% for a in range(1000) %}{{ messages[0].content * 100 }}{% endfor %}"
    with pytest.raises(TokenizerError, match="100,000 characters"):
        apply_chat_template(with_template(template), "ME", CHAT, tokenize=False)


def test_the_limits_are_those_of_one_conversation(monkeypatch):
    """So that a whole dataset can be rendered in one call."""
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 3000)
    tokenizer = with_template("{% for a in range(2000) %}x{% endfor %}")
    start = time.thread_time()
    texts = apply_chat_template(tokenizer, "ME", [CHAT] * 40, tokenize=False)
    assert time.thread_time() - start > 0.1
    assert texts == ["x" * 2000] * 40


@pytest.mark.parametrize("name", REAL)
def test_other_templates_render_as_in_transformers(name):
    tokenizer = with_template(REAL[name])
    for options in ({"tokenize": False}, {"return_dict": False}, {"tokenize": False, "add_generation_prompt": True}):
        expected = tokenizer.apply_chat_template(CHAT, **options)
        assert apply_chat_template(tokenizer, "ME", CHAT, **options) == expected


def test_errors_and_debuggers_are_left_alone():
    """The trace function of a debugger is back afterwards, and a template's own error is transformers'."""
    calls = []

    def debugger(frame, event, value):
        calls.append(event)

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        with pytest.raises(Exception, match="no roles"):
            apply_chat_template(with_template("{{ raise_exception('no roles') }}"), "ME", CHAT, tokenize=False)
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)


def test_other_threads_are_not_traced():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sys.gettrace()))
    with chat_template._limits("ME"):
        thread.start()
        thread.join()
    assert seen == [threading.gettrace()]


def test_an_ensemble_names_the_member(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.1)
    model, _ = pair("llama")
    ensemble = EnsembleForCausalLM.from_members(
        [(model, with_template("{{ messages[0].content }}")), (model, with_template(ENDLESS["nested loops"]))]
    )
    with pytest.raises(TokenizerError, match="the chat template of member LlamaForCausalLM 1 takes more than"):
        ensemble.tokenizer.apply_chat_template(CHAT)
