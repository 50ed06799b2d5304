"""Small real tokenizers of every kind, trained in memory on a few lines."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DebertaV2Tokenizer, PreTrainedTokenizerFast

LINES = [
    "Once upon a time, there was a little girl named Lily who loved the café.",
    "The 3 big dogs ran 12 miles; they didn't stop: naïve, über, 日本語 😀!",
    "def f(x):\n\treturn  x + 1  # then there them the other thing\n",
    'She said, "Hello, world!" and they walked to the thirty-third house.',
] * 4


def _finish(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **special
    )


@cache
def byte_level_bpe(size: int = 330, extra: str = "") -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's; `extra` is an added token that is not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    if extra:
        backend.add_tokens([AddedToken(extra, special=False, normalized=False)])
    return _finish(backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@cache
def sentencepiece_bpe(size: int = 360) -> PreTrainedTokenizerFast:
    """A BPE like Llama's: spaces as `▁`, byte fallback, a space added in front of a text."""
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    trained = json.loads(backend.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["id"] < 3]
    backend = Tokenizer.from_str(json.dumps(trained))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return _finish(backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


def _commonest_parts(words: list[str], count: int) -> dict[str, int]:
    """Characters and the most frequent longer parts of words, with their counts.

    The Unigram and WordPiece trainers of `tokenizers` give another vocabulary in every process; this is deterministic.
    """
    counts = Counter(
        word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 1, min(start + 6, len(word)) + 1)
    )
    ranked = sorted(counts, key=lambda part: (len(part) > 1, -counts[part] * len(part), part))
    return {part: counts[part] for part in ranked[:count]}


@cache
def unigram(size: int = 120) -> PreTrainedTokenizerFast:
    """A Unigram vocabulary without byte fallback and without a normaliser."""
    words = ["▁" + word for line in LINES for word in line.split(" ")]
    parts = _commonest_parts(words, size - 2)
    total = sum(parts.values())
    scored = [("<unk>", 0.0), ("</s>", 0.0), *((part, math.log(n / total)) for part, n in parts.items())]
    backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return _finish(backend, eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


@cache
def deberta_v2(size: int = 120) -> DebertaV2Tokenizer:
    """The tokenizer of DeBERTa-V2 and V3, a Unigram vocabulary with `[CLS]` and `[SEP]` around a text."""
    words = ["▁" + word for line in LINES for word in line.split(" ")]
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    parts = _commonest_parts(words, size - len(specials))
    total = sum(parts.values())
    pieces = [(part, math.log(count / total)) for part, count in parts.items()]
    return DebertaV2Tokenizer([*((special, 0.0) for special in specials), *pieces])


@cache
def wordpiece(size: int = 540) -> PreTrainedTokenizerFast:
    """WordPiece over a byte-level alphabet: continuations with `##`, nothing normalised."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = [part for part in _commonest_parts(" ".join(LINES).split(), size) if len(part) > 1 and part.isascii()]
    tokens = ["<unk>", "<eos>", *alphabet, *("##" + char for char in alphabet), *("##" + part for part in parts)]
    vocab = {token: i for i, token in enumerate(tokens[:size])}
    backend = Tokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>", max_input_chars_per_word=1000))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.ByteLevel()])
    return _finish(backend, eos_token="<eos>", pad_token="<unk>", unk_token="<unk>")


@cache
def characters(with_newline: bool = False) -> PreTrainedTokenizerFast:
    """One token per character of `LINES`, without byte fallback and, by default, without a newline."""
    alphabet = sorted(set("".join(LINES).replace(" ", "▁")) - (set() if with_newline else {"\n"}))
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _finish(backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


@cache
def raw_bytes() -> PreTrainedTokenizerFast:
    """256 tokens, one per byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<eos>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, eos_token="<eos>", pad_token="<eos>")


@cache
def lower_casing() -> PreTrainedTokenizerFast:
    """A lossy tokenizer, which the package refuses."""
    parts = _commonest_parts(" ".join(LINES).lower().split(), 80)
    tokens = ["<unk>", "<eos>", *parts, *("##" + part for part in parts)]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _finish(backend, eos_token="<eos>", unk_token="<unk>")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with control tokens around every message."""

INSTRUCT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system messages') }}"
    "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
)
"""A chat template with marks in plain text, without system messages."""


def changed(tokenizer: PreTrainedTokenizerFast, change: Callable[[Tokenizer], object]) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer whose backend was changed by `change`."""
    tokenizer = copy.deepcopy(tokenizer)
    change(tokenizer.backend_tokenizer)
    return tokenizer


@cache
def chatml() -> PreTrainedTokenizerFast:
    """A byte-level BPE with turn markers and their chat template; `<|im_end|>` ends a text."""
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@cache
def instruct() -> PreTrainedTokenizerFast:
    """A BPE like Llama's that begins every text with `<s>`, with a chat template."""

    def begin(backend: Tokenizer) -> None:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])

    tokenizer = changed(sentencepiece_bpe(), begin)
    tokenizer.chat_template = INSTRUCT
    return tokenizer


LOSSLESS = {
    "byte_level_bpe": byte_level_bpe,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "characters": characters,
    "raw_bytes": raw_bytes,
}
