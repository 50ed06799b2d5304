"""Tiny worlds: tokenizers with a few tokens over one alphabet, each with its own small random model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BloomConfig, LlamaConfig, MambaConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from hf_rlae.members import ReadingsRun, Update, choose_runner
from hf_rlae.members.member import Member
from hf_rlae.vocabulary import Alignment, ByteVocabulary, Lent, UnionVocabulary
from tests.support.readings_reference import ReferenceRun, RuleReference, SegmentationReference

SPECIALS = ("<unk>", "<eos>", "<end>", "<pad>")
"""`<eos>` and `<end>` both end a text; the other two are special tokens and never part of a text."""

Probs = Callable[[tuple[int, ...]], np.ndarray]


def _finish(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<end>"],
    )


def bpe(chars: str, *merges: str, fallback: str = "") -> PreTrainedTokenizerFast:
    """A BPE tokenizer of characters and merges; a merge is its two parts, `"t h"`, or `"_ t"` where `_` is a space.

    `fallback` lists characters of one byte that also have a `<0xNN>` token, a second id for the same byte.
    """
    pairs = [tuple(part.replace("_", " ") for part in merge.split(" ")) for merge in merges]
    tokens = [*SPECIALS, *(f"<0x{ord(char):02X}>" for char in fallback), *chars, *map("".join, pairs)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _finish(backend)


def byte_level(text: str, *merges: tuple[bytes, bytes]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, with only the bytes of `text`."""
    table = _byte_characters()

    def written(raw: bytes) -> str:
        return "".join(table[byte] for byte in raw)

    pairs = [(written(left), written(right)) for left, right in merges]
    single = [table[byte] for byte in dict.fromkeys(text.encode())]
    tokens = [*SPECIALS, *single, *map("".join, pairs)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finish(backend)


def _byte_characters() -> dict[int, str]:
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def pieces_only(*pieces: str) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer that prefers longer tokens: parts of a token need not be tokens."""
    scored = [(token, 0.0) for token in SPECIALS] + [(piece, -4.0 + len(piece)) for piece in pieces]
    backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    backend.decoder = decoders.Fuse()
    return _finish(backend)


@dataclass
class Voice:
    """One member of a world, with everything its run needs.

    Attributes:
        member (`Member`), vocabulary (`ByteVocabulary`), alignment (`Alignment`): as in the package.
        runs (`int`): the number of contexts on which `next_probs` has run the model.
    """

    member: Member
    vocabulary: ByteVocabulary
    alignment: Alignment
    runs: int = 0
    _known: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def next_probs(self, ids: Sequence[int]) -> np.ndarray:
        """The model's probabilities after `ids`, computed from scratch without a cache."""
        ids = tuple(ids)
        if ids not in self._known:
            self.runs += 1
            with torch.no_grad():
                logits = self.member.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            self._known[ids] = logits.float().double().softmax(-1).numpy()
        return self._known[ids]

    def p(self, piece: bytes | str, ids: Sequence[int]) -> float:
        """The probability of the token `piece` after `ids`, over all ids with those bytes."""
        raw = piece.encode() if isinstance(piece, str) else piece
        return float(sum(self.next_probs(ids)[i] for i in self.vocabulary.ids_of[raw]))

    def id(self, piece: str) -> int:
        """The first id of a token."""
        return self.vocabulary.ids_of[piece.encode()][0]

    def ids(self, *pieces: str) -> tuple[int, ...]:
        """The first ids of tokens."""
        return tuple(map(self.id, pieces))

    @cached_property
    def runner(self) -> Any:
        """The runner for rows that advance by different numbers of tokens."""
        return choose_runner(self.member)

    @property
    def text_ids(self) -> list[int]:
        """All ids of text tokens that do not end a text."""
        ends = set(self.member.end_ids)
        return [i for i, piece in enumerate(self.vocabulary.pieces) if piece and i not in ends]


class PackageRun:
    """The package's run behind the interface of `ReferenceRun`.

    Args:
        voice (`Voice`): the member of the run.
        options: passed on to `ReadingsRun`.
    """

    def __init__(self, voice: Voice, **options: Any) -> None:
        self.union = voice.alignment.union
        self.make_update = Update
        self.run = ReadingsRun(voice.member, voice.vocabulary, voice.alignment, runner=voice.runner, **options)
        self.batch = 0

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Starts with one reading per row."""
        self.batch = len(prompts)
        self.run.begin([list(prompt) for prompt in prompts])

    @torch.inference_mode()
    def advance(self, updates: Sequence[tuple[bytes, float, float] | None]) -> None:
        """Takes `(b, r, q)` for each row that continues."""
        self.run.advance([None if u is None else self.make_update(*u) for u in updates])

    @torch.inference_mode()
    def distribution(self) -> np.ndarray:
        """`P(u)`, one row per row of the batch."""
        probs, log_z = self.run.distribution()
        assert probs.dtype == torch.float32
        assert probs.shape[0] == self.batch == log_z.shape[0]
        # a member that proposes nothing gives no mass at all, and its log_z is -inf
        assert not torch.isnan(log_z).any()
        assert torch.equal(torch.isinf(log_z), probs.sum(1) == 0)
        return self.union.spread(probs.log()).exp().double().numpy()

    @torch.inference_mode()
    def proposed(self, union_ids: Sequence[int]) -> np.ndarray:
        """The parts of `P(u)` from whole and from unfinished tokens, for one union token per row: `(2, B)`."""
        return np.array(self.run.measure([self.union.pieces[u] for u in union_ids]).read().proposed()).T

    def readings(self, row: int) -> list[tuple[tuple[int, ...], bytes, float, tuple[Lent, ...]]]:
        """`(ids, tail, a, lent)` of every reading, most probable first."""
        return self.run.readings(row)

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Makes row `i` continue the old row `rows[i]`."""
        self.batch = len(rows)
        self.run.reorder(torch.tensor(list(rows)))


@dataclass
class World:
    """Voices over one alphabet and their union vocabulary."""

    voices: list[Voice]
    union: UnionVocabulary

    def at(self, grain: str) -> World:
        """The same voices at another grain."""
        union = UnionVocabulary([voice.vocabulary for voice in self.voices], grain)
        voices = [
            Voice(
                voice.member,
                voice.vocabulary,
                Alignment(voice.vocabulary, union, voice.member.end_ids),
                _known=voice._known,
            )
            for voice in self.voices
        ]
        return World(voices, union)

    def reference(self, k: int, prompt: Sequence[int], **options: Any) -> RuleReference:
        """The reference of the rules for voice `k`, for one row."""
        voice = self.voices[k]
        return RuleReference(voice.vocabulary, self.union, voice.member.end_ids, voice.next_probs, prompt, **options)

    def reference_run(self, k: int, **options: Any) -> ReferenceRun:
        """The reference of the rules for voice `k`, for a batch of rows."""
        return ReferenceRun(lambda prompt: self.reference(k, prompt, **options))

    def segmentations(self, k: int, prompt: Sequence[int]) -> SegmentationReference:
        """The reference over every segmentation for voice `k`, for one row."""
        voice = self.voices[k]
        return SegmentationReference(voice.vocabulary, self.union, voice.member.end_ids, voice.next_probs, prompt)

    def run(self, k: int, **options: Any) -> PackageRun:
        """The package's run of voice `k`."""
        return PackageRun(self.voices[k], **options)

    @property
    def union_text_ids(self) -> list[int]:
        """The union ids that receive the mass of bytes."""
        return sorted(self.union.id_of.values())


def random_model(vocab_size: int, seed: int, architecture: str = "llama", scale: float = 0.5) -> torch.nn.Module:
    """A random model with uneven distributions; `<eos>` and `<end>` end a text."""
    ends = [SPECIALS.index("<eos>"), SPECIALS.index("<end>")]
    common = {"vocab_size": vocab_size, "eos_token_id": ends, "pad_token_id": 3, "bos_token_id": 1}
    if architecture == "llama":
        config: Any = LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1 + seed % 2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            initializer_range=scale,
            **common,
        )
    elif architecture == "bloom":
        config = BloomConfig(hidden_size=16, n_layer=1, n_head=2, initializer_range=scale, **common)
    elif architecture == "mamba":
        config = MambaConfig(
            hidden_size=16,
            state_size=4,
            num_hidden_layers=1,
            initializer_range=scale,
            use_mambapy=False,
            **common,
        )
    else:
        raise ValueError(architecture)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.set_rng_state(state)
    return model


def build(
    tokenizers: Sequence[PreTrainedTokenizerFast],
    seed: int = 0,
    architecture: str = "llama",
    end_token_ids: Sequence[int] | None = None,
    padding: int = 0,
) -> World:
    """A world of these tokenizers.

    Args:
        tokenizers (`Sequence[PreTrainedTokenizerFast]`): one per voice.
        seed (`int`): the seed of the random models.
        architecture (`str`): the architecture of all models.
        end_token_ids (`Sequence[int]`, *optional*): end ids of the first voice.
        padding (`int`): the number of ids of each model that have no token.
    """
    members = [
        Member(
            random_model(len(tokenizer) + padding, 100 * seed + k, architecture),
            tokenizer,
            name=f"voice {k}",
            end_token_ids=end_token_ids if k == 0 else None,
        )
        for k, tokenizer in enumerate(tokenizers)
    ]
    vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
    union = UnionVocabulary(vocabularies)
    voices = [
        Voice(member, vocabulary, Alignment(vocabulary, union, member.end_ids))
        for member, vocabulary in zip(members, vocabularies, strict=True)
    ]
    return World(voices, union)


def ab_world(seed: int = 0) -> World:
    """Four ways to split texts of two letters; the last tokenizer has two ids for single letters."""
    return build(
        [
            bpe("ab"),
            bpe("ab", "a b", "b a", "a ba"),
            bpe("ab", "a a", "b b", "aa b", "bb a"),
            bpe("ab", "a b", "ab ab", fallback="ab"),
        ],
        seed,
        padding=2,
    )


def th_world(seed: int = 0) -> World:
    """Starts of English words: with a leading space, without one, as characters, and as longer words only."""
    return build(
        [
            bpe("ther y", "_ t", "_t h", "_th e", "r e", "_the re", "h e"),
            bpe("ther y", "t h", "th e", "r e", "the y", "the re"),
            bpe("ther y"),
            bpe("ther y", "h e", "t he", "r e", "he re", "_ the"),
        ],
        seed,
    )


def accent_world(seed: int = 0) -> World:
    """No `é` at all; `é` as a character; `é` as two bytes; a euro sign of three bytes as well."""
    e, f = "é".encode()
    euro = "€".encode()
    return build(
        [
            bpe("hab", "h a", "a b"),
            bpe("héba€", "h é", "hé b"),
            byte_level("hé€ab", (bytes([e]), bytes([f])), (b"h", bytes([e])), (b"a", b"b"), (euro[:1], euro[1:2])),
        ],
        seed,
    )


def random_pieces_world(seed: int, letters: str = "abc") -> World:
    """The letters and random sets of tokens, with which most texts have few segmentations."""
    rng = random.Random(seed)
    tokenizers = [bpe(letters)]
    for _ in range(2):
        wanted = rng.randint(5, 9)
        pieces: list[str] = []
        while len(pieces) < wanted or len({piece[0] for piece in pieces}) < 2:
            piece = "".join(rng.choice(letters) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
            if piece not in pieces:
                pieces.append(piece)
        tokenizers.append(pieces_only(*pieces))
    return build(tokenizers, seed)


@cache
def world(kind: str, seed: int = 0, grain: str = "token") -> World:
    """A world by name, built once: `ab`, `th`, `accent` or `pieces`."""
    if grain != "token":
        return world(kind, seed).at(grain)
    makers = {"ab": ab_world, "th": th_world, "accent": accent_world, "pieces": random_pieces_world}
    return makers[kind](seed)
