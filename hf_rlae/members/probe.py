"""Finds out how a member can be run on ragged rows, which advance by different numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.errors import MemberError
from hf_rlae.members.member import Member
from hf_rlae.members.paths import Chain, Path, Runner
from hf_rlae.members.ragged_run import BatchRunner
from hf_rlae.members.recurrence import returned_state
from hf_rlae.members.row_runner import RowRunner

_PROBE_LENGTHS = (7, 5)


def choose_runner(member: Member) -> type[BatchRunner] | type[RowRunner]:
    """Chooses the runner for a member by trial forward passes.

    The runner reads a few tokens in uneven pieces, goes back once, and must give the same logits as one forward pass of
    the model.

    Args:
        member (`Member`): the member.

    Returns:
        `BatchRunner` if its logits equal the model's, else `RowRunner`.

    Raises:
        MemberError: neither runner works; the message says why.
    """
    text = [i for i in range(member.vocab_size) if i not in member.end_ids][: 3 * max(_PROBE_LENGTHS)]
    texts = [tuple((text * 21)[offset : offset + n]) for offset, n in enumerate(_PROBE_LENGTHS)]
    kinds: list[type[BatchRunner] | type[RowRunner]] = [RowRunner] if member.is_recurrent else [BatchRunner, RowRunner]
    reasons = []
    with member.tried():
        expected = [_own_logits(member, ids) for ids in texts]
        scale = max(float(row.float().abs().max()) for row in expected)
        rounding = scale * (1e-3 if member.dtype == torch.float32 else 0.05) + 1e-4
        for kind in kinds:
            try:
                got = _probe(kind(member), texts)
            except Exception as error:  # a model may raise anything: note the reason, then try the next runner
                reasons.append(f"{kind.kind}: {type(error).__name__}: {error}")
                continue
            error_size = max(_distance(a, b) for a, b in zip(got, expected, strict=True))
            if error_size <= rounding or error_size <= 3 * _own_difference(member, texts, expected):
                return kind
            reasons.append(f"{kind.kind}: logits differ by {error_size:.3g}")
    raise MemberError(
        f"member {member.name} ({type(member.model).__name__}) cannot be used with other tokenizers: "
        f"{'; '.join(reasons)}. Use it with members that share its tokenizer, or leave it out"
    )


def _own_logits(member: Member, ids: Sequence[int]) -> torch.Tensor:
    row = torch.tensor([ids], device=member.device)
    return member.model(input_ids=row, use_cache=False, return_dict=True).logits[0, -1]


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.float() - second.float()).abs().max())


def _own_difference(member: Member, texts: Sequence[tuple[int, ...]], expected: Sequence[torch.Tensor]) -> float:
    """How far the model's own logits differ between reading a text at once and token by token.

    A quantised model that scales activations by the whole input depends on chunking by much more than rounding.
    """
    own = 0.0
    for ids, whole in zip(texts, expected, strict=True):
        state: dict[str, Any] = {}
        for end in range(len(ids)):
            row = torch.tensor([ids[end : end + 1]], device=member.device)
            outputs = member.model(input_ids=row, use_cache=True, return_dict=True, **state)
            state = returned_state(outputs)
        own = max(own, _distance(outputs.logits[0, -1], whole)) if state else own
    return own


def _probe(runner: Runner, texts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    first = [Path(Chain(None, ids[: 2 + row]), (ids[-1],) * (1 + row), 0, 1) for row, ids in enumerate(texts)]
    runner.run(first)
    second = [Path(Chain(None, ids[: 2 + row]), ids[2 + row :], 2 + row, 1) for row, ids in enumerate(texts)]
    output = runner.run(second)
    return [output.logits[row] for row in range(len(texts))]
