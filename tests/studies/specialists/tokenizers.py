"""The three tokenizers of the embedded members. In each of them a digit is always one token.

They differ in words and symbols: `characters` writes `times` letter by letter, `bytes` as ` times`, `pieces` as
`▁times▁` with the space behind it.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.studies.specialists.lessons import corpus

_CORPUS = 2000


def build_characters(seed: int = 0) -> PreTrainedTokenizerFast:
    """One token a character: printable ASCII and the newline; no byte fallback."""
    alphabet = sorted(set(string.printable) - set("\t\r\x0b\x0c "))
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "</s>", "▁", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _finish(backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def build_bytes(seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE with words behind a space, as in GPT-2, and single digits, as in Qwen 2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(_CORPUS, seed), trainer)
    return _finish(backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def build_pieces(seed: int = 0) -> PreTrainedTokenizerFast:
    """SentencePiece's kind, as in Gemma: spaces as `▁`, byte fallback, single digits, pieces across words."""
    specials = ["<pad>", "</s>", "<s>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    normalizer = normalizers.Replace(" ", "▁")
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(corpus(_CORPUS, seed), trainer)
    trained = json.loads(backend.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["id"] < 4]
    backend = Tokenizer.from_str(json.dumps(trained))
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _finish(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _finish(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **special
    )


BUILDERS: dict[str, Callable[[int], PreTrainedTokenizerFast]] = {
    "characters": build_characters,
    "bytes": build_bytes,
    "pieces": build_pieces,
}


class Segmenter:
    """Encodes text with its segmentation varied at random, so that a member learns to read what others wrote.

    Text between digits is segmented by itself, which for these tokenizers is how they do it too.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): one of the three.
        kind (`str`): its name in `BUILDERS`.

    Example:

    >>> segmenter = Segmenter(build_bytes(), "bytes")
    >>> len(segmenter("5 times 3")), len(segmenter("5 times 3", random.Random(0)))
    (4, 6)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._space = "Ġ" if kind == "bytes" else "▁"
        self._vocab = {token: i for token, i in tokenizer.get_vocab().items() if i not in tokenizer.all_special_ids}
        self._longest = max(len(token) for token in self._vocab if not token.startswith("<0x"))
        self._canonical: dict[str, list[int]] = {}
        self._heads: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, text: str, rng: random.Random | None = None) -> list[int]:
        """The ids of a text, without special tokens: the tokenizer's own, or drawn from `rng`."""
        ids: list[int] = []
        for chunk in re.findall(r"\d|\D+", text):
            if rng is None or chunk.isdigit() or rng.random() < 0.5:
                if chunk not in self._canonical:
                    self._canonical[chunk] = self._backend.encode(chunk, add_special_tokens=False).ids
                ids += self._canonical[chunk]
            else:
                ids += self._draw(chunk.replace(" ", self._space), rng)
        return ids

    def _draw(self, surface: str, rng: random.Random) -> list[int]:
        ids = []
        while surface:
            heads = self._heads.get(surface)
            if heads is None:
                lengths = range(1, min(len(surface), self._longest) + 1)
                heads = [(self._vocab[surface[:n]], n) for n in lengths if surface[:n] in self._vocab]
                self._heads[surface] = heads
            i, length = rng.choice(heads)
            ids.append(i)
            surface = surface[length:]
        return ids
