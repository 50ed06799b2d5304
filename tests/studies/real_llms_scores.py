"""What real language models make of texts, computed once and kept on disk.

Each member reads a text once, in its own tokens. Between two places where tokens of all members end, a member's
probability of the text is the product of its own tokens' probabilities; mixtures of members are taken there. Fixed
weights and policies are then compared, and policies trained, without running a member again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_rlae.vocabulary import ByteVocabulary

CONTEXT = 12
"""Characters that are given, as in `evaluate(scoring="bits_per_byte")`, with the word that they end in."""
_POOLED = 8


@dataclass(frozen=True)
class Scored:
    """One text.

    Attributes:
        logps (`torch.FloatTensor` of shape `(S, M)`): each member's log-probability of each stretch between common
            boundaries, in nats.
        appended (`torch.FloatTensor` of shape `(T, M)`): of each token of the first member, where the others append
            their own ids of its bytes; minus infinity if they have no such token.
        num_tokens (`torch.LongTensor` of shape `(S,)`): of each stretch, in the first member's tokens.
        num_bytes (`int`): that are scored.
        seen (`dict[str, torch.Tensor]`): what a policy observes at the beginning of each stretch.
    """

    logps: torch.Tensor
    appended: torch.Tensor
    num_tokens: torch.Tensor
    num_bytes: int
    seen: dict[str, torch.Tensor]


def split_text(text: str) -> tuple[str, str]:
    """What is given, and what is scored."""
    cut = next(at for at in range(CONTEXT, len(text)) if text[at].isspace())
    return text[:cut], text[cut:]


class Scorer:
    """Reads texts with members, and keeps the results in a folder.

    Args:
        members (`Sequence[Member]`): M.
        folder (`Path`): one file per text.
    """

    def __init__(self, members: Sequence[Any], folder: Path) -> None:
        self.members = list(members)
        self.vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def score(self, name: str, text: str, *, appends: bool = True) -> None:
        """Does what is not there yet; without `appends`, the texts where members append tokens are left out."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            return
        found = self._read(text, appends)
        tensors = {"logps": found.logps, "appended": found.appended, "num_tokens": found.num_tokens}
        tensors |= {"num_bytes": torch.tensor(found.num_bytes)}
        tensors |= {f"seen.{key}": value for key, value in found.seen.items()}
        part = path.with_suffix(".part")
        save_file({key: value.contiguous() for key, value in tensors.items()}, str(part))
        part.rename(path)

    @torch.no_grad()
    def _read(self, text: str, appends: bool) -> Scored:
        prompt, rest = split_text(text)
        raw = rest.encode()
        reads = []
        for member, vocabulary in zip(self.members, self.vocabularies, strict=True):
            before = list(member.tokenizer(prompt)["input_ids"])
            reads.append(_Read(member, vocabulary, before, list(vocabulary.canonical_ids(raw))))
        common = sorted(set.intersection(*(set(read.ends) for read in reads)))
        starts, ends = common[:-1], common[1:]
        logps = torch.stack([read.between(starts, ends) for read in reads], dim=1)
        places = [[read.ends.index(start) for start in starts] for read in reads]
        seen: dict[str, torch.Tensor] = {"positions": torch.tensor(places[0])}
        for index, (read, at) in enumerate(zip(reads, places, strict=True)):
            seen[f"hidden_states_{index}"] = read.pooled(at).half()
        for key in ("entropies", "margins"):
            rows = zip(reads, places, strict=True)
            seen[key] = torch.stack([getattr(read, key)[at] for read, at in rows], dim=1)
        tops = [[read.tops[place] for place in at] for read, at in zip(reads, places, strict=True)]
        seen["agreement"] = torch.tensor(
            [[[_agree(a, b) for b in row] for a in row] for row in zip(*tops, strict=True)]
        )
        num_tokens = torch.tensor(places[0][1:] + [len(reads[0].ends) - 1]) - torch.tensor(places[0])
        appended = self._appended(prompt, reads) if appends else logps.new_zeros(0, len(reads))
        return Scored(logps, appended, num_tokens, len(raw), seen)

    def _appended(self, prompt: str, reads: Sequence[_Read]) -> torch.Tensor:
        columns = [reads[0].logps]
        pieces = [self.vocabularies[0].pieces[token] or b"" for token in reads[0].tokens]
        for member, vocabulary in list(zip(self.members, self.vocabularies, strict=True))[1:]:
            own = [list(vocabulary.inner_ids(piece)) for piece in pieces]
            before = list(member.tokenizer(prompt)["input_ids"])
            read = _Read(member, vocabulary, before, [token for ids in own for token in ids])
            at, found = 0, []
            for ids in own:
                found.append(float(read.logps[at]) if len(ids) == 1 else -math.inf)
                at += len(ids)
            columns.append(torch.tensor(found))
        return torch.stack(columns, dim=1)


class _Read:
    """One member's pass over a text: its tokens, where they end, and what it expects at every place."""

    def __init__(self, member: Any, vocabulary: ByteVocabulary, before: list[int], tokens: list[int]) -> None:
        self.tokens = tokens
        output = member.model(input_ids=torch.tensor([before + tokens]), output_hidden_states=True)
        first = len(before) - 1
        logps = output.logits[0, first:].float().log_softmax(-1)
        self.logps = logps[:-1].gather(1, torch.tensor(tokens)[:, None])[:, 0]
        self.hidden = output.hidden_states[-1][0].float()
        self.first = first
        self.entropies = -(logps.exp() * logps).sum(-1)
        top = logps.topk(2, dim=-1)
        self.margins = top.values[:, 0] - top.values[:, 1]
        self.tops = [vocabulary.pieces[token] or b"" for token in top.indices[:, 0].tolist()]
        self.ends = [0]
        for token in tokens:
            self.ends.append(self.ends[-1] + len(vocabulary.pieces[token] or b""))

    def between(self, starts: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the stretches of bytes."""
        sums = torch.cat([torch.zeros(1), self.logps.cumsum(0)])
        return sums[[self.ends.index(end) for end in ends]] - sums[[self.ends.index(start) for start in starts]]

    def pooled(self, places: Sequence[int]) -> torch.Tensor:
        """At each place, the newest hidden state beside the mean over the newest eight."""
        rows = []
        for place in places:
            newest = self.hidden[max(0, self.first + place + 1 - _POOLED) : self.first + place + 1]
            rows.append(torch.cat([newest[-1], newest.mean(0)]))
        return torch.stack(rows)


def _agree(one: bytes, other: bytes) -> float:
    """As in `PolicyState.agreement`; a token without bytes ends the text."""
    is_end = not one or not other
    return float(one == other if is_end else one.startswith(other) or other.startswith(one))


def read_scores(folder: Path, names: Sequence[str]) -> list[Scored]:
    """What is kept of texts."""
    found = []
    for name in names:
        tensors = load_file(str(folder / f"{name}.safetensors"))
        seen = {key.removeprefix("seen."): value for key, value in tensors.items() if key.startswith("seen.")}
        num_bytes = int(tensors["num_bytes"])
        found.append(Scored(tensors["logps"], tensors["appended"], tensors["num_tokens"], num_bytes, seen))
    return found


def bits_of(scored: Scored, weights: torch.Tensor, *, by: str = "logps") -> float:
    """Bits of a text under a mixture.

    Args:
        scored (`Scored`): the text.
        weights (`torch.FloatTensor` of shape `(M,)` or `(S, M)`): fixed ones, or those of every stretch.
        by (`str`, defaults to `"logps"`): or `"appended"`.
    """
    return float(-(getattr(scored, by).double() + weights.double().log()).logsumexp(-1).sum() / math.log(2))
