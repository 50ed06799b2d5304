"""Text passes from tokenizer to tokenizer without losing a byte."""

from __future__ import annotations

import os
import random
import unicodedata
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.errors import TokenizerError
from hf_rlae.members import BatchRunner, Member, ReadingsRun, Update
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary
from tests.support.models import pair
from tests.support.tiers import draws, show_figure
from tests.support.tokenizers import (
    LOSSLESS,
    byte_level_bpe,
    changed,
    chatml,
    instruct,
    lower_casing,
    raw_bytes,
    sentencepiece_bpe,
)

STRINGS = int(os.environ.get("HF_RLAE_STRINGS", "25"))
"""Number of texts for every tokenizer; the nightly run sets it to 2500."""

RANGES = [
    (0x20, 0x7E),  # ASCII
    (0xA0, 0x24F),  # Latin letters with marks
    (0x300, 0x36F),  # combining marks
    (0x400, 0x4FF),  # Cyrillic
    (0x5D0, 0x5EA),  # Hebrew
    (0x3040, 0x30FF),  # kana
    (0x4E00, 0x9FFF),  # Han
    (0x1F300, 0x1FAFF),  # emoji
    (0x1F3FB, 0x1F3FF),  # skin tones
]
ODD = [
    "\t",
    "\n",
    "\r\n",
    "\0",
    "    ",
    "  ",
    "\u200d",
    "\ufe0f",
    "\u2581",
    "\ufffd",
    "def f(x):\n\treturn x\n",
    "<s>",
    "</s>",
]
CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<unk>", "<eos>", "[INST]", "<0x41>", "<tok>", " <tok> "]
CHANGED = ["e\u0301", "\u212b", "ﬁ", "①", "Ａ", "``", "\u00a0", "\u3000", "hôtel", "T", "Once upon"]


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.3:
            parts.append(rng.choice(ODD))
        else:
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))))
        if rng.random() < 0.4:
            parts.append(" ")
    return "".join(parts)


@cache
def everybody():
    """Tokenizers of all kinds, and their union."""
    vocabularies = {name: ByteVocabulary(make()) for name, make in LOSSLESS.items()}
    return vocabularies, UnionVocabulary(list(vocabularies.values()))


def test_ten_thousand_texts():
    """Law: a text that passes from tokenizer to tokenizer through the union vocabulary does not change."""
    vocabularies, union = everybody()
    rng = random.Random(0)
    count = draws(10_000, 85_000)
    for _ in range(count):
        raw = random_text(rng).encode()
        for name in rng.sample(sorted(vocabularies), 2):
            vocabulary = vocabularies[name]
            places = [union.id_of[vocabulary.pieces[i]] for i in vocabulary.canonical_ids(raw)]
            # only characters without a token, in tokenizers without byte fallback, are left out
            expected = vocabulary.representable(raw) if name in ("unigram", "characters") else raw
            raw = b"".join(union.pieces[place] for place in places)
            assert raw == expected, (name, raw)
    show_figure(f"{count} texts through {len(vocabularies)} kinds of tokenizers: 0 changed")


def test_own_round_trip():
    """Law: decoding through the union = the tokenizer's own decoding, for texts that it encodes itself."""
    vocabularies, union = everybody()
    rng = random.Random(2)
    for _ in range(2_000):
        name = rng.choice(["byte_level_bpe", "wordpiece", "raw_bytes"])
        tokenizer, vocabulary = LOSSLESS[name](), vocabularies[name]
        text = random_text(rng).replace("<s>", "").replace("</s>", "")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        through_union = b"".join(union.pieces[union.id_of[vocabulary.pieces[i]]] for i in ids)
        assert through_union.decode() == tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@cache
def reader(name: str):
    """A run of a small model with the tokenizer `name`, and the union vocabulary."""
    model, tokenizer = pair("llama", 3, LOSSLESS[name](), max_position_embeddings=4096)
    vocabularies, union = everybody()
    member = Member(model, tokenizer, end_token_ids=[])
    vocabulary = vocabularies[name]
    return member, vocabulary, Alignment(vocabulary, union, [])


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(LOSSLESS)),
    shares=st.sampled_from([(0, 0), (1, 0), (0.5, 0.3)]),
)
def test_readings_have_the_bytes_of_the_text(seed, name, shares):
    """Law: for every reading `bytes(ids) + tail` is the text, without bytes that the member cannot represent."""
    member, vocabulary, alignment = reader(name)
    rng = random.Random(seed)
    prompt = tuple(vocabulary.canonical_ids(b"the"))
    run = ReadingsRun(member, vocabulary, alignment, runner=BatchRunner)
    with torch.inference_mode():
        run.begin([prompt])
        written = b""
        for _ in range(12):
            piece = rng.choice([random_text(rng).encode(), bytes([rng.randrange(256)]), b" the", b"re", b"\xf0\x9f"])
            run.advance([Update(piece, *shares)])
            written += piece
            readings = run.readings(0)
            assert sum(a for _, _, a, _ in readings) == pytest.approx(1, abs=1e-6)
            found = {vocabulary.to_bytes(ids[len(prompt) :]) + tail for ids, tail, _, _ in readings}
            if name in ("byte_level_bpe", "sentencepiece_bpe", "wordpiece", "raw_bytes"):
                assert found == {written}
            else:
                for raw in found:
                    assert is_thinned(raw, written)


def is_thinned(short: bytes, long: bytes) -> bool:
    """Whether `short` is a subsequence of `long`."""
    rest = iter(long)
    return all(byte in rest for byte in short)


@pytest.mark.parametrize("text", ["naïve café", "日本語 😀👍🏽", "a\tb\n\n  c", "e\u0301", "\0 NUL"])
def test_members_write_bytes_that_the_other_lacks(text):
    """An ensemble can generate every text that one of its members can: a forced text is returned exactly."""
    members = [pair("llama", 0, byte_level_bpe()), pair("gpt2", 1, sentencepiece_bpe())]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([0.5, 0.5]))
    union = ensemble.union
    ids = union.written(text.encode())
    queue = iter(ids)

    def force(input_ids, scores):
        wanted = next(queue, None)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, union.stop_id if wanted is None else wanted] = 0.0
        return forced

    inputs = ensemble.tokenizer(["Once"], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=len(ids) + 1, do_sample=False, logits_processor=[force])
    width = inputs["input_ids"].shape[1]
    assert ensemble.tokenizer.decode(out[0, width:].tolist(), skip_special_tokens=True) == text
    assert ensemble.tokenizer.decode(out[0].tolist(), skip_special_tokens=True) == "Once" + text


def test_lone_continuation_bytes():
    """A byte that is not a character is decoded as a replacement character; its neighbours do not change."""
    members = [pair("llama", 0, raw_bytes()), pair("gpt2", 1, byte_level_bpe())]
    ensemble = EnsembleForCausalLM.from_members(members)
    union = ensemble.union
    ids = [union.id_of[bytes([byte])] for byte in b"a\x80\xe2\x82\xacz\xf0\x9f\x98\x80"]
    assert ensemble.tokenizer.decode(ids) == "a\ufffd€z😀"


# The prompts of members, for tokenizers of many kinds


def _normaliser(normalizer):
    def change(backend):
        own = backend.normalizer
        backend.normalizer = normalizer if own is None else normalizers.Sequence([normalizer, own])

    return change


def _metaspace(scheme):
    def change(backend):
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        strip = decoders.Strip(" ", 1, 0)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
        )

    return change


def _added(**options):
    return lambda backend: backend.add_tokens([AddedToken(word, **options) for word in ("<tok>", "hôtel", "  ")])


CHANGES = {
    "NFC": _normaliser(normalizers.NFC()),
    "NFKC": _normaliser(normalizers.NFKC()),
    "NFD": _normaliser(normalizers.NFD()),
    "Strip": _normaliser(normalizers.Strip()),
    "StripAccents": _normaliser(normalizers.StripAccents()),
    "Lowercase": _normaliser(normalizers.Lowercase()),
    "Replace": _normaliser(normalizers.Replace("``", '"')),
    "Nmt": _normaliser(normalizers.Nmt()),
    "added": _added(),
    "added, lstrip": _added(lstrip=True),
    "added, rstrip": _added(rstrip=True),
    "added, special": _added(lstrip=True, rstrip=True, special=True),
    "added, not normalised": _added(normalized=False),
    "added, whole words": _added(single_word=True),
}
BASES = ("byte_level_bpe", "sentencepiece_bpe", "wordpiece")
MANY = {
    **LOSSLESS,
    "chatml": chatml,
    "instruct": instruct,
    "lower_casing": lower_casing,
    **{f"Metaspace {scheme}": (sentencepiece_bpe, _metaspace(scheme)) for scheme in ("always", "first", "never")},
    **{f"{base}, {name}": (LOSSLESS[base], change) for base in BASES for name, change in CHANGES.items()},
}
REFUSED = ("lower_casing", *(f"{base}, {name}" for base in BASES for name in list(CHANGES)[1:8]))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", MANY)
def test_every_member_reads_the_text_of_the_prompt(name, position):
    """Law: a text survives in every member's prompt and gives no control tokens, or the tokenizer is refused."""
    tokenizer = MANY[name]() if callable(MANY[name]) else changed(MANY[name][0](), MANY[name][1])
    other = byte_level_bpe() if name == "raw_bytes" else raw_bytes()
    members = [pair("llama", 0, tokenizer, num_hidden_layers=1), pair("llama", 1, other, num_hidden_layers=1)]
    if position:
        members.reverse()
    if name in REFUSED:
        with pytest.raises(TokenizerError, match="loses text"):
            EnsembleForCausalLM.from_members(members)
        return
    ensemble = EnsembleForCausalLM.from_members(members)
    rng = random.Random(f"{name} {position}")
    for _ in range(STRINGS):
        text = random_text(rng) + "".join(rng.sample(CONTROL + CHANGED, 2)) + random_text(rng)
        wanted = unicodedata.normalize("NFC", text) if name.endswith(", NFC") else text
        ids = ensemble.tokenizer(text)["input_ids"]
        prompts = ensemble.engine.encoder(ids)
        for vocabulary, prompt in zip(ensemble.engine.vocabularies, prompts, strict=True):
            own = prompt[len(vocabulary.start_ids) :]
            wanted = vocabulary.representable(wanted.encode()).decode()  # others cannot see what the first skips
            assert vocabulary.to_bytes(own).strip(b" ") == wanted.encode().strip(b" ")
            if wanted:  # a prompt without text is one token that starts a text
                unknown = {ensemble.members[0].tokenizer.unk_token_id}
                assert not set(own) & (vocabulary.special_ids - unknown)
        if name not in ("unigram", "characters"):
            assert ensemble.tokenizer.decode(ids, skip_special_tokens=True).strip(" ") == wanted.strip(" ")
