"""Members that a benchmark trains by itself, on TinyStories: small Llamas whose tokenizers differ.

Everything follows from the text and from seeds. Trained members are kept in a folder outside the checkout, named after
all that they depend on. The last tenth of the text is held out: neither tokenizers nor members have seen it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_rlae import Member
from tests.benchmarks.peaked import trained_member

END = "<|endoftext|>"
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
ROWS, COLUMNS = 8, 128
CANDIDATE_LENGTH = 12
"""The longest token that the Unigram vocabulary may get, in characters."""


def default_cache() -> Path:
    """Beside the cache of the Hub: `~/.cache/hf_rlae/benchmarks`, or `hf_rlae/benchmarks` beside `HF_HOME`."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return home.parent / "hf_rlae" / "benchmarks"


def split(corpus: str) -> tuple[list[str], list[str]]:
    """The lines of a text: those that members learn from, and the last tenth, without lines that were learned."""
    lines = corpus.splitlines()
    border = len(lines) * 9 // 10
    learned = set(lines[:border])
    return lines[:border], [line for line in lines[border:] if line not in learned]


def bpe(lines: Sequence[str], size: int, across_spaces: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `across_spaces` says that a token may hold several words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_spaces)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16 if across_spaces else None,
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    return _wrapped(backend)


def unigram(lines: Sequence[str], size: int, rounds: int = 3) -> PreTrainedTokenizerFast:
    """A Unigram vocabulary: frequent parts of words, kept by how often the most probable segmentation uses them.

    (The trainer of `tokenizers` gives another vocabulary in every process.)
    """
    words = Counter("▁" + word for line in lines for word in line.split(" "))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + CANDIDATE_LENGTH, len(word)) + 1):
                counts[word[start:end]] += count
    alphabet = sorted({"▁", *"".join(lines)} - {" "})
    for remaining in reversed(range(rounds)):
        kept = size * 2**remaining - len(alphabet) - 2
        ranked = sorted((p for p in counts if len(p) > 1), key=lambda part: (-counts[part] * len(part), part))
        backend = _unigram_of({part: counts[part] or 1 for part in [*alphabet, *ranked[:kept]]})
        counts = Counter(dict.fromkeys(alphabet, 1))
        for word, count in words.items():
            for token in backend.encode(word.replace("▁", " ")).tokens:
                counts[token] += count
    return _wrapped(backend, unk_token="<unk>")


def _unigram_of(counts: dict[str, int]) -> Tokenizer:
    total = sum(counts.values())
    scored = [("<unk>", 0.0), (END, 0.0), *((part, math.log(count / total)) for part, count in counts.items())]
    backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return backend


def _wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        eos_token=END,
        pad_token=END,
        **special,
    )


TOKENIZERS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerFast]] = {
    "bpe300": lambda lines: bpe(lines, 300),
    "bpe1k": lambda lines: bpe(lines, 1024),
    "bpe8k": lambda lines: bpe(lines, 8192),
    "unigram4k": lambda lines: unigram(lines, 4096),
    "spaces1k": lambda lines: bpe(lines, 1024, across_spaces=True),
}
"""What `story_member` can be asked for."""

STEPS = {"bpe300": 2000, "bpe1k": 700, "bpe8k": 350, "unigram4k": 350, "spaces1k": 700}
"""Steps of 1024 tokens, so many that members predict the held-out lines about equally well."""


def story_member(
    name: str, corpus: str, cache: Path, steps: int | None = None, report: Callable[[str], None] | None = None
) -> Member:
    """A member with one of `TOKENIZERS`, trained if the cache does not have it.

    Args:
        name (`str`): one of `TOKENIZERS`.
        corpus (`str`): the whole text; the part that `split` holds out is not read.
        cache (`Path`): where members are kept.
        steps (`int`, *optional*): fewer or more than `STEPS` says.
        report (callable, *optional*): called with lines of progress.
    """
    steps = STEPS[name] if steps is None else steps
    lines, _ = split(corpus)
    recipe = json.dumps([name, SHAPE, ROWS, COLUMNS, CANDIDATE_LENGTH, steps])
    digest = hashlib.sha256("\n".join([recipe, *lines]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{steps}-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tokenizer = TOKENIZERS[name](lines)
        with torch.inference_mode(False), torch.enable_grad():
            model = trained_member(tokenizer, "\n".join(lines), steps, SHAPE, report=report, rows=ROWS, columns=COLUMNS)
        scratch = tempfile.mkdtemp(dir=cache)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        try:
            os.replace(scratch, folder)
        except OSError:  # another run was quicker
            shutil.rmtree(scratch)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    return Member(model, AutoTokenizer.from_pretrained(folder), name=name)
