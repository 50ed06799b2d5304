"""Bodies of requests: what they mean, and what is refused in words."""

from __future__ import annotations

import json

import pytest

from hf_rlae.errors import HfRlaeError
from hf_rlae.serving.completion_request import read_request

GREEDY = {"do_sample": False}
HELLO = [{"role": "user", "content": "Hello"}]


def read(defaults=GREEDY, **body):
    return read_request({"model": "tiny", **body}, "messages" in body, defaults, 50)


SAMPLE = {"do_sample": True, "top_k": 0, "max_new_tokens": 50}
MEANINGS = [
    # body, options of generate
    ({}, {"do_sample": False, "max_new_tokens": 50}),
    ({"max_tokens": 7}, {"do_sample": False, "max_new_tokens": 7}),
    ({"max_completion_tokens": 8}, {"do_sample": False, "max_new_tokens": 8}),
    ({"temperature": 0}, {"do_sample": False, "max_new_tokens": 50}),
    ({"temperature": 0, "top_p": 0.5}, {"do_sample": False, "max_new_tokens": 50}),
    ({"temperature": 0.5}, {**SAMPLE, "temperature": 0.5, "top_p": 1.0}),
    ({"top_p": 0.5}, {**SAMPLE, "temperature": 1.0, "top_p": 0.5}),
    ({"n": 1, "echo": False, "tools": [], "user": "me", "logprobs": None}, {"do_sample": False, "max_new_tokens": 50}),
    (
        {"generation_config": json.dumps({"do_sample": True, "max_new_tokens": 5, "transformers_version": "5"})},
        {"do_sample": True, "max_new_tokens": 5},
    ),
    (
        {"generation_config": json.dumps({"do_sample": True, "top_k": 5}), "temperature": 2},
        {"do_sample": True, "top_k": 5, "temperature": 2, "top_p": 1.0, "max_new_tokens": 50},
    ),
]


@pytest.mark.parametrize(("body", "options"), MEANINGS)
def test_fields_become_options_of_generate(body, options):
    assert read(prompt="x", **body).options == options


def test_the_server_says_how_to_choose_tokens_if_the_request_does_not():
    defaults = {"do_sample": True, "temperature": 0.3, "top_p": 0.9, "top_k": 0}
    assert read(defaults, prompt="x").options == {**defaults, "max_new_tokens": 50}
    assert read(defaults, prompt="x", temperature=0).options["do_sample"] is False


def test_prompts_and_messages_are_read():
    assert read(prompt=["x"]).prompt == read(prompt="x").prompt == "x"
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert read(messages=[{"role": "user", "content": parts}]).prompt == HELLO
    assert read(messages=[{"role": "developer", "content": "Hello"}]).prompt[0]["role"] == "system"
    assert read(prompt="x", stop="a").stop == ("a",)
    assert read(prompt="x", stop=["a", "bc"], seed=-3, stream=True).stop == ("a", "bc")


WRONG = [
    ({}, "prompt is missing"),
    ({"prompt": 3}, "give one string"),
    ({"prompt": ["a", "b"]}, "lists of several"),
    ({"prompt": [1, 2]}, "ids of tokens are not supported"),
    ({"prompt": "half \ud83d"}, "half of a character"),
    ({"messages": []}, "at least one message"),
    ({"messages": "Hello"}, "a list of at least one message"),
    ({"messages": ["Hello"]}, "messages[0] is not an object"),
    ({"messages": [{"role": "usr", "content": "x"}]}, "did you mean 'user'?"),
    ({"messages": [{"role": "user"}]}, "messages[0].content: give a text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of the type text"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "tools are not supported"),
    ({"prompt": "x", "n": 2}, "n: only 1 is supported"),
    ({"prompt": "x", "n": True}, "n: only 1 is supported"),
    ({"prompt": "x", "logprobs": 5}, "logprobs: only false"),
    ({"prompt": "x", "tools": [{}]}, "tools: only [] is supported"),
    ({"prompt": "x", "response_format": {"type": "json_object"}}, 'only {"type": "text"}'),
    ({"prompt": "x", "presence_penalty": 0.5}, "presence_penalty: only 0"),
    ({"prompt": "x", "temprature": 1}, "did you mean 'temperature'?"),
    ({"prompt": "x", "temperature": "hot"}, "temperature='hot'"),
    ({"prompt": "x", "temperature": -1}, "of at least 0"),
    ({"prompt": "x", "temperature": float("nan")}, "a finite number"),
    ({"prompt": "x", "top_p": 1.5}, "at most 1"),
    ({"prompt": "x", "seed": "one"}, "seed='one'"),
    ({"prompt": "x", "seed": 2**70}, "a whole number"),
    ({"prompt": "x", "stream": "yes"}, "give true or false"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens=0"),
    ({"prompt": "x", "max_tokens": 51}, "at most 50 tokens"),
    ({"prompt": "x", "generation_config": '{"max_new_tokens": 51}'}, "at most 50 tokens"),
    ({"prompt": "x", "generation_config": "{"}, "a string with a JSON object"),
    ({"prompt": "x", "generation_config": {}}, "a string with a JSON object"),
    ({"prompt": "x", "generation_config": '{"num_beams": 9}'}, "num_beams cannot be set here"),
    ({"prompt": "x", "generation_config": '{"top_k": -1}'}, "top_k=-1"),
    ({"prompt": "x", "stop": [""]}, "1 to 1000 characters"),
    ({"prompt": "x", "stop": ["a"] * 17}, "at most 16"),
    ({"prompt": "x", "stop": {"a": 1}}, "give a string"),
]


@pytest.mark.parametrize(("body", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(body, said):
    with pytest.raises(HfRlaeError) as error:
        read(**body)
    assert said in str(error.value)
