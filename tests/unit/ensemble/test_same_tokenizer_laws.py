"""Laws of ensembles whose members share one tokenizer: copies, order, the formula of the mixture, paddings, caches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae import EntropyPolicy, StaticPolicy
from hf_rlae.errors import InputError
from tests.support.ensembles import TEXTS, encode, endless, mixture, own_logits, policy_of_text
from tests.support.models import WINDOW, constant, pair, pairs
from tests.support.tokenizers import byte_level_bpe

MIXINGS = ("linear", "log", "power")
weight_lists = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5)
quick = settings(max_examples=15)


@cache
def trio():
    """Three members of different architectures."""
    return pairs(["llama", "gpt2", "gemma3"])


def text_ids(columns: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 330, (rows, columns), generator=torch.Generator().manual_seed(seed))


# Copies of one member


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_copies_write_what_the_model_writes(copies, mixing, architecture):
    """Law: K copies of a model = the model."""
    model, tokenizer = pair(architecture, max_position_embeddings=64)
    options = {
        "do_sample": False,
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected = model.generate(**encode(*TEXTS), **options, eos_token_id=None)
    ensemble = endless([(model, tokenizer)] * copies, mixing=mixing, span_length=3)
    got = ensemble.generate(**encode(*TEXTS), **options)
    assert torch.equal(got.sequences, expected.sequences)
    for ours, own in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours.log_softmax(-1), own.log_softmax(-1), atol=2e-6, rtol=0)
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)


@quick
@given(weights=weight_lists, mixing=st.sampled_from(MIXINGS), seed=st.integers(0, 99))
def test_copies_with_any_weights(weights, mixing, seed):
    """Law: K copies of a model = the model, for any weights."""
    member = trio()[0]
    ensemble = endless([member] * len(weights), StaticPolicy(weights), mixing=mixing)
    ids = text_ids(9, rows=2, seed=seed)
    with torch.no_grad():
        got, own = ensemble(input_ids=ids).logits, member[0](input_ids=ids).logits
    torch.testing.assert_close(got.log_softmax(-1), own.log_softmax(-1), atol=2e-6, rtol=5e-7)


# The order of members


@quick
@given(first=st.floats(0.0, 1.0), mixing=st.sampled_from(MIXINGS), seed=st.integers(0, 99))
def test_order_of_two(first, mixing, seed):
    """Law: swapping two members with their weights gives the same numbers, bit-exactly."""
    one, two, _ = trio()
    weights = torch.tensor([[first, 1 - first]])
    forwards = endless([one, two], lambda state: weights.expand(state.batch_size, -1), mixing=mixing)
    backwards = endless([two, one], lambda state: weights.flip(1).expand(state.batch_size, -1), mixing=mixing)
    ids = text_ids(8, rows=2, seed=seed)
    with torch.no_grad():
        assert torch.equal(forwards(input_ids=ids).logits, backwards(input_ids=ids).logits)


@quick
@given(
    order=st.permutations(range(3)),
    weights=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1),
    mixing=st.sampled_from(MIXINGS),
)
def test_order_of_three(order, weights, mixing):
    """Law: the order of members does not matter."""
    members = trio()
    one = endless(members, StaticPolicy(weights), mixing=mixing)
    other = endless([members[i] for i in order], StaticPolicy([weights[i] for i in order]), mixing=mixing)
    ids = text_ids(8)
    with torch.no_grad():
        a, b = one(input_ids=ids).logits, other(input_ids=ids).logits
    torch.testing.assert_close(a.log_softmax(-1), b.log_softmax(-1), atol=2e-6, rtol=0)


# The formula


@quick
@given(weights=weight_lists, mixing=st.sampled_from(MIXINGS), seed=st.integers(0, 99), prompt=st.integers(0, 6))
def test_logits_are_the_formula(weights, mixing, seed, prompt):
    """Law: `logits` = log of the mixture + `sum_k w_k log Z_k`, for a batch with left padding."""
    members = (trio() * 2)[: len(weights)]
    ensemble = endless(members, StaticPolicy(weights), mixing=mixing)
    ids = text_ids(7, rows=2, seed=seed)
    mask = torch.ones_like(ids)
    mask[1, :prompt] = 0
    with torch.no_grad():
        got = ensemble(input_ids=ids, attention_mask=mask).logits
    for row, start in ((0, 0), (1, prompt)):
        own = [own_logits(model, ids[row, start:]) for model, _ in members]
        expected = mixture(own, torch.tensor([ensemble.policy.weights]).expand(7 - start, -1), mixing)
        torch.testing.assert_close(got[row, start:].double(), expected, atol=2e-5, rtol=0)


finite = st.floats(-30, 30, width=32)
logit_rows = st.lists(finite | st.sampled_from([0.0, -torch.inf]), min_size=6, max_size=6).filter(
    lambda row: max(row) > -torch.inf
)


@quick
@given(
    rows=st.lists(logit_rows, min_size=2, max_size=3),
    weights=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_linear_mixture_sums_to_one(rows, weights, dtype):
    """Law: mixtures sum to 1 and equal the formula, with ties, ruled-out tokens, weights of 0 and bf16 members."""
    size = len(byte_level_bpe())
    weights = torch.tensor(weights[: len(rows)], dtype=torch.float32) + torch.tensor([1e-3, 0.0, 0.0])[: len(rows)]
    weights = weights / weights.sum()
    logits = [torch.tensor(row).repeat(size // 6 + 1)[:size].to(dtype) for row in rows]
    ensemble = endless([constant(row) for row in logits], lambda state: weights.expand(state.batch_size, -1))
    ensemble.to(dtype)
    with torch.no_grad():
        got = ensemble(input_ids=text_ids(3)).logits
    assert got.dtype == torch.float32 or int((weights > 0).sum()) == 1
    exact = [row.double() for row in logits]
    shift = sum(float(w) * row.logsumexp(0) for w, row in zip(weights, exact, strict=True))
    probs = (got[0].double() - shift).exp()
    assert not probs.isnan().any()
    rounding = 1e-6 + 2.5e-7 * abs(float(shift))  # fp32 rounding of numbers as large as the shift
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, dtype=torch.float64), atol=rounding, rtol=0)
    mixed = sum(float(w) * row.softmax(0) for w, row in zip(weights, exact, strict=True))
    torch.testing.assert_close(got[0].double().softmax(-1), mixed.expand(3, -1), atol=1e-6, rtol=0)
    assert torch.equal(got[0] == -torch.inf, (mixed == 0).expand(3, -1))


@quick
@given(rows=st.lists(st.lists(finite, min_size=6, max_size=6), min_size=2, max_size=2), first=st.floats(0.0, 1.0))
def test_a_product_of_experts(rows, first):
    """Law: log mixing multiplies probabilities; a token that a member with weight rules out is ruled out."""
    size = len(byte_level_bpe())
    logits = [torch.tensor(row).repeat(size // 6 + 1)[:size] for row in rows]
    logits[0][3::6] = -torch.inf
    weights = torch.tensor([first, 1 - first])
    ensemble = endless(
        [constant(row) for row in logits], lambda state: weights.expand(state.batch_size, -1), mixing="log"
    )
    with torch.no_grad():
        got = ensemble(input_ids=text_ids(1)).logits[0, 0].double().softmax(-1)
    terms = [(w * row.double()) for w, row in zip(weights.tolist(), logits, strict=True) if w > 0]
    torch.testing.assert_close(got, sum(terms).softmax(-1), atol=1e-6, rtol=0)
    assert bool((got[3::6] == 0).all()) == (float(weights[0]) > 0)


def test_bf16_members_are_mixed_in_fp32():
    """Law: the mixture of bf16 members is computed in fp32."""
    members = pairs(["llama", "qwen2"])
    ensemble = endless(members, StaticPolicy([0.3, 0.7]))
    ensemble.to(torch.bfloat16)
    ids = text_ids(6)
    with torch.no_grad():
        got = ensemble(input_ids=ids).logits
    own = [own_logits(model, ids[0]) for model, _ in members]
    assert got.dtype == torch.float32
    expected = mixture(own, torch.tensor([[0.3, 0.7]]).expand(6, -1))
    torch.testing.assert_close(got[0].double(), expected, atol=1e-5, rtol=0)


def test_members_of_different_widths():
    """A member can have a padded vocabulary; ids that the other member cannot read are never generated."""
    members = [pair("llama", 0), pair("gpt2", 1, vocab_size=352)]
    ensemble = endless(members, StaticPolicy([0.5, 0.5]))
    ids = text_ids(5)
    with torch.no_grad():
        got = ensemble(input_ids=ids).logits[0].double()
    assert got.shape == (5, 352)
    narrow, wide = (own_logits(model, ids[0]).softmax(-1) for model, _ in members)
    both = narrow + wide[:, :330]
    torch.testing.assert_close(got.softmax(-1)[:, :330], both / both.sum(-1, keepdim=True), atol=1e-6, rtol=0)
    assert (got.softmax(-1)[:, 330:] == 0).all()


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.0, 1.0]])
@pytest.mark.parametrize("order", [1, -1])
def test_members_of_different_widths_write(order, weights):
    """Ids past the smallest embedding are neither generated nor accepted in prompts."""
    members = [pair("llama", 0), pair("llama", 1, vocab_size=394)][::order]
    ensemble = endless(members, StaticPolicy(weights[::order]))
    torch.manual_seed(0)
    out = ensemble.generate(**encode(*TEXTS), do_sample=True, top_k=0, temperature=3.0, max_new_tokens=60)
    assert int(out.max()) < 330
    with pytest.raises(InputError, match="has the id 350, outside the union vocabulary of 330"):
        ensemble(input_ids=torch.tensor([[5, 350]]))


# Members whose context the text outgrows


def test_rows_keep_their_weights_where_a_member_drops_out_for_others():
    """The others get equal weights only in a row in which the member that dropped out had all the weight."""
    members = [pair("llama", 0, max_position_embeddings=24), pair("llama", 1), pair("llama", 2)]
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.9, 0.1]])
    ids = text_ids(30, rows=2)
    ensemble = endless(members, lambda state: rows, span_length=100)
    with torch.no_grad():
        got = ensemble(input_ids=ids).logits[:, -1].double().softmax(-1)
    own = [torch.stack([own_logits(model, row)[-1] for row in ids]).softmax(-1) for model, _ in members]
    torch.testing.assert_close(got[0], (own[1][0] + own[2][0]) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1], 0.9 * own[1][1] + 0.1 * own[2][1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("contexts", [(40, 24), (24, 40)])
def test_the_member_with_the_largest_context_stays(contexts):
    """A text that is longer than every member's context; the smaller member has no positions for it."""
    members = [pair("gpt2", seed, max_position_embeddings=size) for seed, size in enumerate(contexts)]
    members[contexts.index(40)] = pair("llama", 0, max_position_embeddings=40)
    ensemble = endless(members)
    ids = text_ids(46)
    with torch.no_grad():
        got = ensemble(input_ids=ids).logits[0, -1].double().softmax(-1)
    expected = own_logits(members[contexts.index(40)][0], ids[0])[-1].softmax(-1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


SMALL = {"max_position_embeddings": 16}
OUTGROWN = {
    "llama": lambda: [pair("llama", 0), pair("llama", 1, **SMALL)],
    "gpt2": lambda: [pair("llama", 0), pair("gpt2", 1, **SMALL)],
}


@pytest.mark.parametrize("policy", [None, policy_of_text, EntropyPolicy()], ids=["uniform", "text", "members"])
@pytest.mark.parametrize("kind", OUTGROWN)
def test_a_batch_is_its_rows_where_one_of_them_outgrows_a_context(kind, policy, caplog):
    """A member continues a short row after a long row has outgrown its context."""
    ensemble = endless(OUTGROWN[kind](), policy, span_length=2)
    texts = ["Once upon a time, there", "the"]
    options = {"do_sample": False, "max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    together = ensemble.generate(**encode(*texts), **options)
    assert sum("outgrown the context" in record.message for record in caplog.records) == 1
    assert together.member_logps[0, -1].isnan().tolist() == [False, True]
    assert not together.member_logps[1].isnan().any()
    for row, text in enumerate(texts):
        alone = ensemble.generate(**encode(text), **options)
        torch.testing.assert_close(together.member_logps[row], alone.member_logps[0], atol=1e-5, rtol=0, equal_nan=True)
        got, expected = torch.stack(together.logits)[:, row], torch.stack(alone.logits)[:, 0]
        torch.testing.assert_close(got.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", OUTGROWN)
def test_one_pass_over_a_text_that_outgrows_a_context_equals_stepping(kind, use_cache):
    ensemble = endless(OUTGROWN[kind](), policy_of_text, span_length=3)
    ids = text_ids(22)
    with torch.no_grad():
        whole = ensemble(input_ids=ids).logits
        cache = ensemble.new_cache(use_cache)
        steps = [ensemble(input_ids=ids[:, :5], past_key_values=cache, prompt_length=0).logits]
        steps += [ensemble(input_ids=ids[:, at : at + 1], past_key_values=cache).logits for at in range(5, 22)]
    torch.testing.assert_close(torch.cat(steps, 1).softmax(-1), whole.softmax(-1), atol=1e-5, rtol=0)


def test_proposals_beyond_a_context_that_were_not_taken_cost_no_member():
    """Assisted decoding gives the same as greedy decoding, including the members' log-probabilities."""
    members = OUTGROWN["llama"]()
    ensemble = endless(members, span_length=3)
    options = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True}
    expected = ensemble.generate(**encode(TEXTS[0]), **options)
    got = ensemble.generate(**encode(TEXTS[0]), **options, assistant_model=pair("llama", 3)[0])
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.member_logps, expected.member_logps, atol=1e-5, rtol=0, equal_nan=True)


# Caches, batches and padding

FAMILIES = {
    "plain": ["llama", "gpt2"],
    "sliding": ["gemma3", "mistral"],
    "recurrent": ["mamba", "llama"],
    "rwkv": ["rwkv", "gpt2"],
}


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stepping_equals_one_pass(family, use_cache):
    """Law: `forward` over a whole text = the same text in pieces through the cache, with text-dependent weights."""
    ensemble = endless(pairs(FAMILIES[family]), policy_of_text, span_length=3)
    ids = text_ids(2 * WINDOW + 5)
    with torch.no_grad():
        whole = ensemble(input_ids=ids, prompt_length=4).logits
        cache = ensemble.new_cache(use_cache=use_cache)
        parts, at = [], 0
        for width in (4, 1, 1, 3, 1, 2, 1, 1, 1, 6):
            piece = ids[:, at : at + width]
            parts.append(ensemble(input_ids=piece, past_key_values=cache, prompt_length=4).logits)
            at += width
    assert at == ids.shape[1] == cache.get_seq_length()
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["plain", "sliding", "recurrent", "rwkv"])
def test_padding_changes_nothing(family):
    """Law: 0 to 64 columns of padding on the left, and other rows, do not change a row."""
    ensemble = endless(pairs(FAMILIES[family]), policy_of_text, span_length=4)
    rows = [text_ids(length, seed=length)[0] for length in (12, 5, 9)]
    with torch.no_grad():
        alone = [ensemble(input_ids=row[None], prompt_length=len(row) - 2).logits[0] for row in rows]
        for padding in (0, 1, WINDOW, 64):
            width = 12 + padding
            ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
            mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
            got = ensemble(input_ids=ids, attention_mask=mask, prompt_length=width - 2).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(
                    got[row, -len(expected) :],
                    expected,
                    atol=1e-4,
                    rtol=0,
                    msg=f"row {row}, {padding} columns",
                )


@pytest.mark.parametrize("padding", [0, 1, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_generating_from_a_padded_batch(family, padding):
    """Law: `generate` from a batch = from each of its rows alone, for any padding."""
    ensemble = endless(pairs(FAMILIES[family]), policy_of_text, span_length=3)
    batch = encode(*TEXTS)
    ids = torch.nn.functional.pad(batch["input_ids"], (padding, 0))
    mask = torch.nn.functional.pad(batch["attention_mask"], (padding, 0))
    got = ensemble.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row, text in enumerate(TEXTS):
        alone = ensemble.generate(**encode(text), max_new_tokens=8, do_sample=False)
        assert got[row, -8:].tolist() == alone[0, -8:].tolist(), f"row {row}"


@pytest.mark.parametrize("family", ["plain", "sliding"])
def test_right_padding_and_labels_in_forward(family):
    """Law: padding on the right changes no row of `forward`; `loss` is the cross entropy of the shifted labels."""
    ensemble = endless(pairs(FAMILIES[family]), policy_of_text, span_length=2)
    rows = [text_ids(length, seed=length)[0] for length in (14, 6, 10)]
    prompts = (5, 3, 9)
    ids = torch.stack([torch.nn.functional.pad(row, (0, 14 - len(row))) for row in rows])
    mask = torch.stack([torch.arange(14) < len(row) for row in rows]).long()
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, :prompt] = -100
    with torch.no_grad():
        got = ensemble(input_ids=ids, attention_mask=mask, labels=labels)
        nlls = []
        for row, (kept, prompt) in enumerate(zip(rows, prompts, strict=True)):
            alone = ensemble(input_ids=kept[None], prompt_length=prompt).logits[0]
            torch.testing.assert_close(got.logits[row, : len(kept)], alone, atol=1e-4, rtol=0, msg=f"row {row}")
            logps = alone.log_softmax(-1)[prompt - 1 : -1]
            nlls.append(-logps.gather(-1, kept[prompt:, None])[:, 0])
    torch.testing.assert_close(got.loss, torch.cat(nlls).mean(), atol=1e-4, rtol=0)


def test_where_spans_start():
    """Law: span 0 begins at `prompt_length`, else at the first label, else at the first attended token."""
    asked = []

    def policy(state):
        asked.append(list(zip(state.span_index.tolist(), state.text, strict=True)))
        return policy_of_text(state)

    ensemble = endless(pairs(["llama", "gpt2"]), policy, span_length=4)
    ids = text_ids(10, rows=2)

    def starts(**kwargs):
        asked.clear()
        with torch.no_grad():
            logits = ensemble(input_ids=ids, **kwargs).logits
        return sorted(entry for call in asked for entry in call), logits

    def texts(*columns):
        decode = ensemble.tokenizer.decode
        return sorted(
            (span, decode(ids[row, :column].tolist(), skip_special_tokens=True))
            for row in range(2)
            for span, column in enumerate(columns[row])
        )

    labels = ids.clone()
    labels[0, :6] = -100
    labels[1, :3] = -100
    by_label, with_labels = starts(labels=labels)
    by_length, with_lengths = starts(prompt_length=torch.tensor([6, 3]))
    assert by_label == by_length == texts((6, 10), (3, 7))
    assert torch.equal(with_labels, with_lengths)
    assert starts(labels=labels, prompt_length=2)[0] == texts((2, 6, 10), (2, 6, 10))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    whole, _ = starts(attention_mask=mask)
    assert [span for span, _ in whole] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"do_sample": True, "top_k": 0}, {"repetition_penalty": 1.5}])
def test_the_cache_changes_nothing(mode):
    """Law: `use_cache=False` generates the same texts."""
    ensemble = endless(pairs(["llama", "gemma3", "mamba"]), policy_of_text, span_length=3)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(
            ensemble.generate(
                **encode(*TEXTS[:1]), max_new_tokens=12, use_cache=use_cache, **{"do_sample": False, **mode}
            )
        )
    assert torch.equal(*outputs)


def test_gradients_reach_the_weights_of_the_policy():
    """Outside of `generate`, the loss can be differentiated with respect to the weights of a policy."""
    scores = torch.zeros(2, requires_grad=True)
    ensemble = endless(pairs(["llama", "gpt2"]), lambda state: scores.softmax(0).expand(state.batch_size, -1))
    ids = text_ids(8)
    ensemble(input_ids=ids, labels=ids).loss.backward()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = torch.tensor([sign * 1e-2, 0.0]).softmax(0)
            other = endless(ensemble.members, lambda state, moved=moved: moved.expand(state.batch_size, -1))
            losses.append(float(other(input_ids=ids, labels=ids).loss))
    assert float(scores.grad[0]) == pytest.approx((losses[0] - losses[1]) / 2e-2, abs=2e-3)
    assert abs(float(scores.grad[0])) > 1e-3


@pytest.mark.parametrize("mixing", ["linear", "log"])
@pytest.mark.parametrize("kind", OUTGROWN)
def test_the_others_share_the_weight_of_a_member_that_drops_out(kind, mixing):
    """Law: after a member's context is outgrown, the ensemble equals an ensemble of the others.

    In a product of experts the weights are exponents: without renormalisation they would flatten the distribution.
    """
    members = OUTGROWN[kind]()
    ensemble = endless(members, StaticPolicy([0.4, 0.6]), mixing=mixing)
    ids = text_ids(22)
    with torch.no_grad():
        got = ensemble(input_ids=ids).logits[0, -1].double().softmax(-1)
    expected = own_logits(members[0][0], ids[0])[-1].softmax(-1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
