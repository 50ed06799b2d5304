"""Small real tokenizers of every kind, trained in memory on a few lines."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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
    """GPT-2's kind; `extra` is an added token that is not special."""
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
    """Llama's kind: spaces as `▁`, byte fallback, a space put in front of a text."""
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


@cache
def unigram(size: int = 200) -> PreTrainedTokenizerFast:
    """A Unigram vocabulary without byte fallback and without a normaliser."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    return _finish(backend, eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


@cache
def wordpiece(size: int = 400) -> PreTrainedTokenizerFast:
    """WordPiece over a byte-level alphabet: continuations with `##`, nothing normalised."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=1000))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.ByteLevel()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<eos>", *alphabet, *("##" + char for char in alphabet)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 2]
    backend = Tokenizer.from_str(json.dumps(state))
    return _finish(backend, eos_token="<eos>", pad_token="<unk>", unk_token="<unk>")


@cache
def characters(with_newline: bool = False) -> PreTrainedTokenizerFast:
    """One token a character, only those of `LINES`, no byte fallback (and no newline unless asked)."""
    alphabet = sorted(set("".join(LINES).replace(" ", "▁")) - (set() if with_newline else {"\n"}))
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _finish(backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


@cache
def raw_bytes() -> PreTrainedTokenizerFast:
    """256 tokens, one a byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<eos>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, eos_token="<eos>", pad_token="<eos>")


@cache
def lower_casing() -> PreTrainedTokenizerFast:
    """A lossy tokenizer, to be refused."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", "<eos>"], show_progress=False)
    backend.train_from_iterator(LINES, trainer)
    return _finish(backend, eos_token="<eos>", unk_token="<unk>")


LOSSLESS = {
    "byte_level_bpe": byte_level_bpe,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "characters": characters,
    "raw_bytes": raw_bytes,
}
