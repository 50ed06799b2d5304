"""Ragged rows, which advance by different numbers of ids: in any forward passes, each row is read as if alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from hf_rlae.members import Member, ragged_run
from hf_rlae.members.paths import Chain, Path
from hf_rlae.members.ragged_cache import shared_columns
from hf_rlae.members.ragged_run import BatchRunner
from hf_rlae.members.shared_run import captured_head_input
from tests.support.models import ARCHITECTURES, RECURRENT, tiny
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe

ATTENTIVE = [name for name in ARCHITECTURES if name not in RECURRENT]
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=ATTENTIVE)
def member(request) -> Member:
    tokenizer = byte_level_bpe()
    return Member(tiny(request.param, len(tokenizer)), tokenizer)


def _read_alone(member: Member, texts: Sequence[tuple[int, ...]], wants: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                member.model(torch.tensor([ids]), use_cache=False).logits[0, -want:]
                for ids, want in zip(texts, wants, strict=True)
                if want
            ]
        )


def _means_alone(member: Member, texts: list[tuple[int, ...]], wants: list[int], count: int) -> torch.Tensor:
    """The means of the newest `count` hidden states at the last ids of every text, each read alone."""
    means = []
    for ids, want in zip(texts, wants, strict=True):
        with torch.no_grad(), captured_head_input(member, True) as caught:
            member.model(input_ids=torch.tensor([ids]), use_cache=False)
        ends = range(len(ids) - want + 1, len(ids) + 1)
        means += [caught[0][0, max(0, end - count) : end].mean(0) for end in ends]
    return torch.stack(means)


def _said(member: Member, hidden: torch.Tensor) -> torch.Tensor:
    """The logits of hidden states."""
    with torch.no_grad():
        logits = member.model.get_output_embeddings()(hidden)
    cap = getattr(member.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("least_saved", [1, 1000, *slow(3)])
@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_every_row_is_read_as_if_it_were_alone(member, monkeypatch, least_saved, seed):
    monkeypatch.setattr(ragged_run, "_LEAST_SAVED", least_saved)
    rng = random.Random(seed)
    runner = BatchRunner(member, hidden_tokens=rng.choice([2, 5]))
    texts = [tuple(rng.choices(range(20, 300), k=rng.choice([2, 3, 12]))) for _ in range(6)]
    with torch.no_grad():
        first = runner.run([Path(Chain(None, ids), (), 0, 1) for ids in texts])
        _close(first.logits, _read_alone(member, texts, [1] * 6))
        runs = 1
        for _ in range(8):
            order = torch.tensor(rng.choices(range(6), k=6)) if rng.random() < 0.3 else torch.arange(6)
            runner.reorder(order)
            texts = [texts[row] for row in order.tolist()]
            paths: list[Path | None] = []
            wants = []
            for row, ids in enumerate(texts):
                if rng.random() < 0.3:
                    paths.append(None)
                    wants.append(0)
                    continue
                kept = len(ids) - rng.choice([0, 0, 0, 1])  # sometimes the last id is replaced
                new = tuple(rng.choices(range(20, 300), k=rng.choice([1, 1, 1, 2, 5, 9])))
                want = rng.randint(1, len(new))
                paths.append(Path(Chain(None, ids[:kept]), new, kept, want))
                wants.append(want)
                texts[row] = ids[:kept] + new
            if any(paths):
                runs += 1
                output = runner.run(paths)
                _close(output.logits, _read_alone(member, texts, wants))
                assert output.hidden is not None
                newest, means = output.hidden.chunk(2, dim=-1)
                _close(_said(member, newest), output.logits)
                _close(means, _means_alone(member, texts, wants, runner.hidden_tokens))
    assert (runner.forward_calls > runs) == (least_saved < 1000)  # some rows were read in two passes, or in none


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_row_are_read_in_one_pass(monkeypatch, kind):
    monkeypatch.setattr(ragged_run, "_LEAST_SAVED", 1)
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 8}
    if kind == "longrope":
        rope |= {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    tokenizer = byte_level_bpe()
    turned, plain = (
        Member(tiny("llama", len(tokenizer), **options), tokenizer) for options in ({"rope_parameters": rope}, {})
    )
    texts = [tuple(range(30, 30 + length)) for length in (2, 2, 2, 12)]
    for member, passes in ((turned, 1), (plain, 2)):
        runner = BatchRunner(member)
        with torch.no_grad():
            runner.run([Path(Chain(None, ids), (), 0, 1) for ids in texts])
        assert runner.forward_calls == passes


def test_columns_are_narrow_where_few_rows_are_long():
    assert shared_columns([1] * 30 + [9], 10, 0.0) == 1
    assert shared_columns([1] * 30 + [9] * 30, 10, 0.0) == 1
    assert shared_columns([9] * 30, 10, 0.0) == 9  # a second pass saves nothing
    assert shared_columns([1] * 30 + [9], 1000, 0.0) == 9  # it saves too little
    assert shared_columns([1] * 30 + [9] * 30, 10, 100.0) == 9  # copying the caches of 30 rows costs more
    assert shared_columns([1, 3, 3, 3, 3, 12], 1, 0.0) == 3
    assert shared_columns([0, 0, 0, 4], 1, 0.0) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_other_number_of_columns_has_fewer_cells(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([0, 1, 1, 2, 8]) for _ in range(rng.randint(2, 40))] + [rng.randint(1, 9)]

    def cells(columns: int) -> int:
        return len(lengths) * columns + sum(max(lengths) - columns for length in lengths if length > columns)

    found = shared_columns(lengths, 1, 0.0)
    assert cells(found) == min(cells(columns) for columns in range(1, max(lengths) + 1))


@pytest.mark.parametrize("hidden_tokens", [0, 3])
def test_rows_of_different_lengths_that_all_advance_by_one(member, hidden_tokens):
    """Law: the most common step: each row has its own positions, and one new token after its own last one."""
    runner = BatchRunner(member, hidden_tokens=hidden_tokens)
    rng = random.Random(0)
    texts = [tuple(rng.choices(range(20, 300), k=length)) for length in (2, 7, 4)]
    with torch.no_grad():
        runner.run([Path(Chain(None, ids), (), 0, 1) for ids in texts])
        for _ in range(3):
            new = [tuple(rng.choices(range(20, 300), k=1)) for _ in texts]
            output = runner.run(
                [Path(Chain(None, ids), more, len(ids), 1) for ids, more in zip(texts, new, strict=True)]
            )
            texts = [ids + more for ids, more in zip(texts, new, strict=True)]
            _close(output.logits, _read_alone(member, texts, [1] * 3))
