"""How well members predict the parts of a text between their common token boundaries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.errors import InputError
from hf_rlae.members import Member
from hf_rlae.vocabulary import ByteVocabulary


@dataclass(frozen=True)
class ReadText:
    """What M members make of one text, which common boundaries of their tokens cut into S stretches.

    Attributes:
        logps (`torch.DoubleTensor` of shape `(S, M)`): the log-probability of each stretch, in nats: the product of the
            probabilities of the member's own tokens in it.
        seen (`torch.FloatTensor` of shape `(S, F)`): what is known before each stretch: the last hidden state, the
            entropy and the margin of every member.
        agreement (`float`): the share of stretches before which all members' most likely tokens begin alike.
        common (`float`): common boundaries, divided by all places where a token of any member ends.
        num_bytes (`int`): of the text that is scored.
        seconds (`tuple[float, ...]`): of each member's forward pass.
    """

    logps: torch.Tensor
    seen: torch.Tensor
    agreement: float
    common: float
    num_bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class _Pass:
    """One member's pass over a text; rows of tensors are places before a token, and the last one after all."""

    ends: list[int]
    sums: torch.Tensor
    seen: torch.Tensor
    tops: list[bytes]
    seconds: float


class StretchReader:
    """Reads texts with members, each in its own tokens, in one forward pass per member and text.

    Source: ours.

    Args:
        members (`Sequence[Member]`): M members on this machine.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]

    @torch.no_grad()
    def read(self, prompt: str, text: str) -> ReadText:
        """What the members make of a text after a prompt.

        Args:
            prompt (`str`): is given, and not scored.
            text (`str`): is scored.

        Raises:
            InputError: a member has no tokens for a character of the text.
        """
        raw = text.encode("utf-8", "surrogatepass")
        for member, vocabulary in zip(self.members, self.vocabularies, strict=True):
            if vocabulary.representable(raw) != raw:
                raise InputError(
                    f"member {member.name} has no tokens for some characters of {text[:40]!r}; leave it out"
                )
        pairs = zip(self.members, self.vocabularies, strict=True)
        passes = [self._pass(member, vocabulary, prompt, raw) for member, vocabulary in pairs]
        common = sorted(set.intersection(*(set(own.ends) for own in passes)))
        places = [[own.ends.index(end) for end in common] for own in passes]
        logps = [own.sums[at].diff() for own, at in zip(passes, places, strict=True)]
        seen = [own.seen[at[:-1]] for own, at in zip(passes, places, strict=True)]
        tops = zip(
            *([own.tops[place] for place in at[:-1]] for own, at in zip(passes, places, strict=True)), strict=True
        )
        return ReadText(
            logps=torch.stack(logps, dim=1),
            seen=torch.cat(seen, dim=1),
            agreement=sum(map(_begin_alike, tops)) / (len(common) - 1),
            common=(len(common) - 1) / (len(set.union(*(set(own.ends) for own in passes))) - 1),
            num_bytes=len(raw),
            seconds=tuple(own.seconds for own in passes),
        )

    def _pass(self, member: Member, vocabulary: ByteVocabulary, prompt: str, raw: bytes) -> _Pass:
        before, tokens = list(member.tokenizer(prompt)["input_ids"]), list(vocabulary.canonical_ids(raw))
        ids = torch.tensor([before + tokens], device=member.device)
        began = time.perf_counter()
        output: Any = member.model(input_ids=ids, output_hidden_states=True)
        first = len(before) - 1
        logps = output.logits[0, first:].float().log_softmax(-1)
        own = logps[:-1].gather(1, ids[0, len(before) :, None])[:, 0].double().cpu()
        top = logps.topk(2, dim=-1)
        entropies = -(logps.exp() * logps).sum(-1)
        margins = top.values[:, 0] - top.values[:, 1]
        hidden = output.hidden_states[-1][0, first:].float()
        ends = [0]
        for token in tokens:
            ends.append(ends[-1] + len(vocabulary.pieces[token] or b""))
        return _Pass(
            ends=ends,
            sums=torch.cat([own.new_zeros(1), own.cumsum(0)]),
            seen=torch.cat([hidden, entropies[:, None], margins[:, None]], dim=1).cpu(),
            tops=[vocabulary.pieces[token] or b"" for token in top.indices[:, 0].tolist()],
            seconds=time.perf_counter() - began,
        )


def _begin_alike(tokens: Sequence[bytes]) -> bool:
    """Whether all tokens are beginnings of the longest one; a token without bytes ends the text."""
    longest = max(tokens, key=len)
    return all(longest.startswith(token) and bool(token) == bool(longest) for token in tokens)
