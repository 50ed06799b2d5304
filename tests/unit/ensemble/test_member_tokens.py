"""How many tokens each member was run for: counted from weights, and compared with forward passes."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import InputError, StaticPolicy
from hf_rlae.baselines.costs import member_tokens
from hf_rlae.ensemble.member_tokens import count_member_tokens
from tests.support.ensembles import TEXTS, Schedule, columns_read, encode, endless
from tests.support.models import constant, pair, pairs
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

WEIGHTS = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0.5]], [[0.2, 0.3, 0.5], [0, 0, 1.0]]])
INDEX = torch.tensor([[0, 0, 1, 1], [0, 0, 1, -1]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [[[2, 0, 0], [0, 2, 2]], [[2, 2, 2], [0, 0, 1]]], id="members with weight"),
        pytest.param(
            {"observes_members": True},
            [[[2, 1, 1], [1, 2, 2]], [[2, 2, 2], [1, 1, 1]]],
            id="all members at the first token of a span",
        ),
        pytest.param(
            {"observes_members": True, "lookahead_tokens": 5},
            [[[7, 6, 6], [6, 7, 7]], [[7, 7, 7], [6, 6, 6]]],
            id="and each looks ahead once a span",
        ),
        pytest.param(
            {"drawn_members": torch.tensor([[0, 0, 1, 2], [2, 1, 2, 2]])},
            [[[2, 0, 0], [0, 1, 1]], [[0, 1, 1], [0, 0, 1]]],
            id="drawn members alone",
        ),
    ],
)
def test_counts(options, expected):
    assert count_member_tokens(WEIGHTS, INDEX, **options).tolist() == expected


class SilentSchedule(Schedule):
    observes_members = False


class LookingSchedule(Schedule):
    """Looks at the members whenever it is asked."""

    def __call__(self, state):
        assert len(state.observations) == state.num_members
        return super().__call__(state)


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("observes", [False, True])
def test_counts_are_the_tokens_for_which_members_ran(kind, observes):
    """One row: each counted token is one forward pass (its prompt, or a token and what it had missed)."""
    members = pairs(["llama", "gpt2"]) if kind == "shared" else [pair("llama", 0), pair("gpt2", 1, sentencepiece_bpe())]
    policy = (LookingSchedule if observes else SilentSchedule)([1, 0], [0.5, 0.5], [0, 1])
    ensemble = endless(members, policy, span_length=3)
    with columns_read(*(member.model for member in ensemble.members)) as calls:
        output = ensemble.generate(**encode(TEXTS[0]), max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    counted = member_tokens(ensemble, output)[0].tolist()
    assert counted == ([8, 8] if observes else [7, 6]), "spans of 3, 3, 3 and 1 tokens"
    if kind == "shared":  # with different tokenizers a token of another member may end inside of one's own: no pass
        assert [len(seen) for seen in calls] == counted


@pytest.mark.parametrize("draw", ["token", "span"])
def test_drawn_members(draw):
    """With draws each token has one member; the trace names it."""
    tokenizer = byte_level_bpe()
    members = []
    for token in (40, 50):
        logits = torch.full((len(tokenizer),), -20.0)
        logits[token] = 20.0
        members.append(constant(logits, tokenizer))
    ensemble = endless(members, StaticPolicy([0.5, 0.5]), span_length=2, draw=draw)
    torch.manual_seed(0)
    output = ensemble.generate(**encode(*TEXTS), max_new_tokens=8, do_sample=True, return_dict_in_generate=True)
    assert torch.equal(output.drawn_members, (output.sequences[:, -8:] == 50).long())
    counted = member_tokens(ensemble, output)
    assert counted.sum(1).tolist() == [8, 8, 8]
    assert torch.equal(counted[:, 1], output.drawn_members.sum(1))
    assert len(set(output.drawn_members.flatten().tolist())) == 2


def test_tokens_past_the_end_are_not_counted():
    """A row that ends early is padded, and the padding costs nothing."""
    tokenizer = byte_level_bpe()
    logits = torch.full((len(tokenizer),), -20.0)
    logits[tokenizer.eos_token_id] = 20.0
    members = [constant(logits, tokenizer), pair("llama", 1)]

    class FirstRowEnds(StaticPolicy):
        def __call__(self, state):
            return torch.tensor([[1.0, 0], [0, 1.0]])

    ensemble = endless(members, FirstRowEnds([1, 1]), end_token_ids=[[tokenizer.eos_token_id], []])
    output = ensemble.generate(**encode(*TEXTS[:2]), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert member_tokens(ensemble, output).tolist() == [[1, 0], [0, 5]]


def test_an_output_without_a_trace():
    ensemble = endless([pair("llama")])
    with pytest.raises(InputError, match=r"got Tensor; call `generate` with return_dict_in_generate=True"):
        member_tokens(ensemble, ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2))
