"""Rows that advance by different numbers of ids: however they are put into forward passes, each is read as if alone."""

from __future__ import annotations

import random

import pytest
import torch

from hf_rlae.member import Member, runners
from hf_rlae.member.runners import Chain, Path, SlotRunner
from hf_rlae.member.slots import shared_columns
from tests.support.models import ARCHITECTURES, RECURRENT, tiny
from tests.support.tokenizers import byte_level_bpe

ATTENTIVE = [name for name in ARCHITECTURES if name not in RECURRENT]
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=ATTENTIVE)
def member(request) -> Member:
    tokenizer = byte_level_bpe()
    return Member(tiny(request.param, len(tokenizer)), tokenizer)


def _read_alone(member: Member, texts: list[tuple[int, ...]], wants: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                member.model(torch.tensor([ids]), use_cache=False).logits[0, -want:]
                for ids, want in zip(texts, wants, strict=True)
                if want
            ]
        )


@pytest.mark.parametrize("least_saved", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_read_as_if_it_were_alone(member, monkeypatch, least_saved, seed):
    monkeypatch.setattr(runners, "_LEAST_SAVED", least_saved)
    rng = random.Random(seed)
    runner = SlotRunner(member)
    texts = [tuple(rng.choices(range(20, 300), k=rng.randint(2, 6))) for _ in range(6)]
    with torch.no_grad():
        runner.run([Path(Chain(None, ids), (), 0, 1) for ids in texts])
        for _ in range(8):
            paths: list[Path | None] = []
            wants = []
            for row, ids in enumerate(texts):
                if rng.random() < 0.3:
                    paths.append(None)
                    wants.append(0)
                    continue
                kept = len(ids) - rng.choice([0, 0, 0, 1])  # now and then the last id turns out to be another one
                new = tuple(rng.choices(range(20, 300), k=rng.choice([1, 1, 1, 2, 5, 9])))
                want = rng.randint(1, len(new))
                paths.append(Path(Chain(None, ids[:kept]), new, kept, want))
                wants.append(want)
                texts[row] = ids[:kept] + new
            if any(paths):
                output = runner.run(paths, hidden=True)
                expected = _read_alone(member, texts, wants)
                torch.testing.assert_close(output.logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
                head = member.model.get_output_embeddings()
                assert output.hidden is not None
                assert output.hidden.shape == (sum(wants), head.in_features)


def test_hidden_states_go_with_their_logits(monkeypatch):
    monkeypatch.setattr(runners, "_LEAST_SAVED", 1)
    tokenizer = byte_level_bpe()
    member = Member(tiny("llama", len(tokenizer)), tokenizer)
    runner = SlotRunner(member)
    with torch.no_grad():
        runner.run([Path(Chain(None, (30, 31)), (), 0, 1)] * 4)
        paths = [Path(Chain(None, (30, 31)), tuple(range(40, 40 + k)), 2, k) for k in (1, 2, 7)]
        output = runner.run([*paths, None], hidden=True)
        assert runner.forward_calls == 3
        torch.testing.assert_close(member.model.lm_head(output.hidden), output.logits)


def test_columns_are_narrow_where_few_rows_are_long():
    assert shared_columns([1] * 30 + [9], 10, 0.0) == 1
    assert shared_columns([1] * 30 + [9] * 30, 10, 0.0) == 1
    assert shared_columns([9] * 30, 10, 0.0) == 9  # nothing is saved
    assert shared_columns([1] * 30 + [9], 1000, 0.0) == 9  # not enough is
    assert shared_columns([1] * 30 + [9] * 30, 10, 100.0) == 9  # the caches of 30 rows cost more
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
