"""Renderings of chat templates are parsed back to the messages."""

from __future__ import annotations

import copy

import pytest

from hf_rlae.ensemble.chats.member_chats import render
from hf_rlae.ensemble.chats.parser import ChatParser
from tests.support.rlae import CHAT_TEMPLATES
from tests.support.tokenizers import CHATML, INSTRUCT, byte_level_bpe

TEMPLATES = {
    "chatml": CHATML,
    "with a default system message": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe.<|im_end|>\n"
    "{% endif %}" + CHATML,
    "instruct": INSTRUCT,
    "plain": CHAT_TEMPLATES[0],
    "trimming": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "without a prompt for an answer": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
}

CHATS = {
    "one question": ("user",),
    "with system": ("system", "user"),
    "a second question": ("user", "assistant", "user"),
    "three with system": ("system", "user", "assistant", "user", "assistant", "user"),
    "an answer": ("user", "assistant"),
}

CONTENTS = {
    "words": "What is {}?",
    "lines": "a\n\nb {}\n",
    "empty": "",
    "a name in it": "Tom said <|im_end|> and {} [INST]",
}


def renderer(template):
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.chat_template = template
    return lambda messages, is_prompt: render(tokenizer, "one", [messages], {"add_generation_prompt": is_prompt})[0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("roles", CHATS)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("is_prompt", [True, False])
def test_a_parsed_rendering_renders_the_same(name, roles, content, is_prompt):
    """Law: what is parsed from a rendering has the same rendering, and the messages where contents are unambiguous."""
    render_chat = renderer(TEMPLATES[name])
    messages = [{"role": role, "content": CONTENTS[content].format(index)} for index, role in enumerate(CHATS[roles])]
    if name == "instruct" and roles in ("with system", "three with system"):
        with pytest.raises(ValueError, match="no system messages"):
            render_chat(messages, is_prompt)
        return
    text = render_chat(messages, is_prompt)
    chat = ChatParser(render_chat).parse(text)
    assert chat is not None
    assert render_chat(chat.messages, chat.options["add_generation_prompt"]) + chat.rest == text
    if content == "words" and name in ("chatml", "with a default system message", "trimming", "instruct"):
        assert chat.messages == messages
        assert chat.rest == ""


@pytest.mark.parametrize("name", ["chatml", "with a default system message", "trimming", "instruct", "plain"])
def test_the_beginning_of_an_answer_is_the_rest(name):
    render_chat = renderer(TEMPLATES[name])
    messages = [{"role": "user", "content": "What is it?"}]
    chat = ChatParser(render_chat).parse(render_chat(messages, True) + "Sure, it", is_open=True)
    assert chat is not None
    assert (chat.messages, chat.rest) == (messages, "Sure, it")


NOT_RENDERINGS = {
    "plain text": "What is it?",
    "no text": "",
    "the opening alone": "<|im_start|>",
    "an unknown role": "<|im_start|>tool\nx<|im_end|>\n<|im_start|>assistant\n",
    "cut off": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assist",
    "another white space": "<|im_start|>user\nWhat is it?<|im_end|><|im_start|>assistant\n",
    "text before": "x<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", NOT_RENDERINGS)
def test_other_texts_are_no_chats(name):
    assert ChatParser(renderer(CHATML)).parse(NOT_RENDERINGS[name]) is None


def test_only_open_chats_count_if_asked():
    render_chat = renderer(CHATML)
    text = render_chat([{"role": "user", "content": "hi"}], False)
    assert ChatParser(render_chat).parse(text) is not None
    assert ChatParser(render_chat).parse(text, is_open=True) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}",  # writes nothing around contents
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",  # changes contents
        "{{ raise_exception('never') }}",
        "{{ nothing.at.all }}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }};{% endfor %}",
    ],
)
def test_templates_that_cannot_be_parsed(template):
    parser = ChatParser(renderer(template))
    assert parser.openings == ()
    assert parser.parse("hi") is None


def test_a_limited_number_of_turns_is_parsed():
    """A text of 40,000 turns takes a fraction of a second."""
    render_chat = renderer(CHATML)
    text = "<|im_start|>user\n" + "x<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n<|im_start|>user\n" * 20_000
    chat = ChatParser(render_chat).parse(text)
    assert chat is None or (len(chat.messages) < 3000 and chat.rest)
