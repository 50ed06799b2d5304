"""Means over several hidden states: a policy observes what the models compute, in every way of decoding."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleLogitsProcessor, PolicyConfig, PolicyModel, UniformPolicy
from hf_rlae.errors import InputError, PolicyError
from hf_rlae.members.hidden_states import ColumnStates, with_means
from hf_rlae.members.row_runner import RowRunner
from tests.support.ensembles import TEXTS, encode, endless
from tests.support.models import pair, pairs
from tests.support.tiers import slow
from tests.support.tokenizers import raw_bytes

POOLED = 9
"""More than the shortest prompt has."""
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "looked up": {"do_sample": False, "prompt_lookup_num_tokens": 4},
    "without cache": {"do_sample": False, "use_cache": False},
}


def members(kind):
    if kind == "different":
        return [pair("llama"), pair("gpt2", 1, raw_bytes(), hidden_size=16)]
    return pairs(["llama", "rwkv"] if kind == "recurrent" else ["llama", "gpt2"])


class Looker:
    """Records the hidden states of every text; gives all weight to one member, then to the next."""

    pooled_tokens = POOLED

    def __init__(self):
        self.seen = {}

    def __call__(self, state):
        for row, text in enumerate(state.text):
            self.seen.setdefault(text, []).append([hidden[row].clone() for hidden in state.hidden_states])
        speaker = (state.span_index + torch.tensor([len(text) for text in state.text])) % state.num_members
        return torch.nn.functional.one_hot(speaker, state.num_members).float()


def looked_at(given, span_length, inputs, **options):
    """The sequences, and the recorded hidden states."""
    looker = Looker()
    ensemble = endless(given, looker, span_length=span_length)
    torch.manual_seed(0)
    return ensemble, ensemble.generate(**inputs, max_new_tokens=13, **options), looker.seen


def _close(one, other):
    return torch.allclose(one, other, atol=2e-4, rtol=1e-3)


def _expected(model, ids):
    """The last hidden state after some ids, and the mean, by one forward pass of the model itself."""
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True).hidden_states[-1][0]
    return torch.cat([states[-1], states[-POOLED:].mean(0)])


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("same", mode) for mode in MODES]
    + [("recurrent", "greedy"), *slow(*(("recurrent", mode) for mode in ("sampling", "beams", "without cache")))],
)  # recurrent members cannot be cropped
@pytest.mark.parametrize("span_length", [1, *slow(5)])
def test_last_state_and_mean_of_the_newest_tokens(kind, span_length, mode):
    """Law, with one tokenizer: the model's own states after the row's tokens, and their mean without padding."""
    given = members(kind)
    inputs = encode(*(TEXTS[:1] if mode == "looked up" else TEXTS))
    ensemble, sequences, seen = looked_at(given, span_length, inputs, **MODES[mode])
    width, times = inputs["input_ids"].shape[1], len(sequences) // len(inputs["input_ids"])
    compared = 0
    for row, ids in enumerate(sequences):
        own = ids[int((inputs["attention_mask"][row // times] == 0).sum()) :]
        for end in range(len(own) - (len(ids) - width), len(own), span_length):
            found = seen[ensemble.tokenizer.decode(own[:end].tolist(), skip_special_tokens=True)]
            for index, (model, _) in enumerate(given):
                expected = _expected(model, own[:end])
                assert any(_close(entry[index], expected) for entry in found)
                compared += 1
    assert compared >= 2 * len(sequences) * (13 // span_length)


@pytest.mark.parametrize("rows", [False, True], ids=["slots", "rows"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("span_length", [5, *slow(1)])
def test_different_tokenizers_see_what_forcing_the_text_sees(span_length, mode, rows, monkeypatch):
    """Law: the observation depends on the text only: it is the same in generation and in one forward pass."""
    given = members("different")
    if rows:
        monkeypatch.setattr("hf_rlae.ensemble.assembly.choose_runner", lambda member: RowRunner)
    inputs = encode(*(TEXTS[:1] if mode == "looked up" else TEXTS))
    ensemble, sequences, seen = looked_at(given, span_length, inputs, **MODES[mode])
    assert all((runner is RowRunner) == rows for runner in ensemble.engine.runners)
    width, times = inputs["input_ids"].shape[1], len(sequences) // len(inputs["input_ids"])
    monkeypatch.undo()
    compared = 0
    for row, ids in enumerate(sequences):
        pads = int((inputs["attention_mask"][row // times] == 0).sum())
        looker = Looker()
        forced = endless(given, looker, span_length=span_length)
        forced(ids[None, pads:-1], prompt_length=width - pads)
        for text, entries in looker.seen.items():
            for index, hidden in enumerate(entries[0]):
                assert any(_close(entry[index], hidden) for entry in seen[text])
                compared += 1
    assert compared > len(sequences) * (13 // span_length)  # incomplete characters may decode to the same text


@pytest.mark.parametrize("rereads", [False, True])
@pytest.mark.parametrize("mode", ["sampling", "beams", *slow("greedy", "without cache")])
@pytest.mark.parametrize("kind", ["same", "different"])
def test_the_host_of_a_processor_is_seen_as_in_the_ensemble(kind, mode, rereads):
    """The processor's observations equal the ensemble's at the end of the prompt; with one tokenizer in all spans."""
    given = members(kind)
    host, others = given[0], given[1:]
    _, sequences, seen = looked_at(given, 2, encode(*TEXTS), **MODES[mode])
    looker = Looker()
    processor = EnsembleLogitsProcessor.from_members(
        host[0],
        [model for model, _ in others],
        tokenizers=[tokenizer for _, tokenizer in given],
        policy=looker,
        host_rereads=rereads,
        span_length=2,
        end_token_ids=[()] * len(given),
    )
    host[0].generation_config.eos_token_id = None
    torch.manual_seed(0)
    out = host[0].generate(**encode(*TEXTS), logits_processor=[processor], max_new_tokens=13, **MODES[mode])
    texts = looker.seen if kind == "same" else [text for text in TEXTS if text in looker.seen]
    assert len(texts) >= 3
    for text in texts:
        for index, hidden in enumerate(looker.seen[text][0]):
            assert any(_close(entry[index], hidden) for entry in seen[text])
    if kind == "same":
        assert torch.equal(out, sequences)
    elif not rereads and mode != "beams":  # the host has read the generated ids
        inputs = encode(*TEXTS)
        times, width, newest, compared = len(out) // 3, inputs["input_ids"].shape[1], 0, 0
        for row, ids in enumerate(out):
            own = ids[int((inputs["attention_mask"][row // times] == 0).sum()) :]
            begin = len(own) - (len(ids) - width)
            said = {end: _expected(host[0], own[:end]) for end in range(begin, len(own))}
            for end in range(begin, len(own), 2):
                found = looker.seen[processor.ensemble.tokenizer.decode(own[:end].tolist(), skip_special_tokens=True)]
                # the most probable reading may have a tail: the outputs before its unfinished token count
                ends = [e for e in range(begin, end + 1) if any(_close(entry[0], said[e]) for entry in found)]
                assert ends
                newest += end in ends
                compared += 1
        assert newest > compared // 2


def test_members_with_prompts_of_their_own():
    """The mean includes tokens of the member's own prompt, not of the shared one."""
    given = members("same")
    looker = Looker()
    ensemble = endless(given, looker, span_length=1)
    inputs = encode(TEXTS[0])
    other = encode(TEXTS[0], TEXTS[1])
    out = ensemble.generate(
        **inputs,
        member_input_ids=other["input_ids"][None],
        member_attention_mask=other["attention_mask"][None],
        max_new_tokens=5,
        do_sample=False,
    )
    written = out[0, inputs["input_ids"].shape[1] :]
    prompts = [ids[mask.bool()] for ids, mask in zip(other["input_ids"], other["attention_mask"], strict=True)]
    for count in range(5):
        text = ensemble.tokenizer.decode(out[0, : len(out[0]) - 5 + count].tolist(), skip_special_tokens=True)
        for index, (model, _) in enumerate(given):
            expected = _expected(model, torch.cat([prompts[index], written[:count]]))
            torch.testing.assert_close(looker.seen[text][0][index], expected, atol=2e-4, rtol=1e-3)


def test_the_tap_changes_nothing_that_callers_of_the_host_get():
    model, tokenizer = pair("llama")
    ids = encode(TEXTS[0])["input_ids"]

    def answers():
        with torch.no_grad():
            return [
                model(ids).logits,
                model(ids, logits_to_keep=1).logits,
                model(ids, logits_to_keep=2, return_dict=False)[0],
                model(ids, labels=ids[:, -2:], logits_to_keep=2).loss,
            ]

    before = answers()
    processor = EnsembleLogitsProcessor.from_members(model, [pair("gpt2")[0]], [tokenizer] * 2, policy=Looker())
    for one, other in zip(before, answers(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        model(ids, logits_to_keep=1)
    assert processor._capture.take().hidden.shape[1] == POOLED


def test_a_host_that_has_shown_too_little_is_refused():
    """A mean over fewer states than `pooled_tokens` raises an error: it would be another observation."""
    (host, tokenizer), (other, _) = members("same")
    processor = EnsembleLogitsProcessor.from_members(host, [other], [tokenizer] * 2, policy=Looker())
    inputs = encode(TEXTS[0])
    with torch.no_grad():
        cache = host(inputs["input_ids"][:, :-1]).past_key_values
    with pytest.raises(InputError, match=f"newest {POOLED} hidden states.* over the prompt has 1"):
        host.generate(**inputs, past_key_values=cache, logits_processor=[processor], max_new_tokens=2)


@pytest.mark.parametrize("kind", ["same", "different"])
def test_logits_are_made_for_the_wanted_columns_alone(kind, monkeypatch):
    """The head's inputs are captured for means, but the head computes no more logits than without means."""
    given = members(kind)
    widths = []
    ensemble = endless(given, Looker(), span_length=2)
    for model, _ in given:
        head = model.get_output_embeddings()
        monkeypatch.setattr(head, "forward", _counted(head.forward, widths))
    ensemble.generate(**encode(*TEXTS), max_new_tokens=6, do_sample=False)
    assert set(widths) == {1}


def _counted(forward, widths):
    def count(states):
        widths.append(states.shape[1])
        return forward(states)

    return count


@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_one_member_alone_is_that_member_bit_exactly(mode):
    given = pairs(["llama"])
    options = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True, **MODES[mode]}
    torch.manual_seed(0)
    own = given[0][0].generate(**encode(*TEXTS), eos_token_id=None, pad_token_id=0, **options)
    torch.manual_seed(0)
    out = endless(given, Looker(), span_length=2).generate(**encode(*TEXTS), **options)
    assert torch.equal(out.sequences, own.sequences)
    for one, other in zip(out.logits, own.logits, strict=True):
        assert torch.equal(one, other)


def test_a_cache_of_another_policy_is_refused():
    given = members("same")
    ensemble = endless(given, UniformPolicy())
    inputs = encode(TEXTS[0])
    out = ensemble.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    ensemble.set_policy(Looker())
    with pytest.raises(InputError, match=f"newest 0 tokens.*reads {POOLED} now"):
        ensemble.generate(input_ids=out.sequences, past_key_values=out.past_key_values, max_new_tokens=2)
    out = ensemble.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    ensemble.set_policy(UniformPolicy())
    ensemble.generate(input_ids=out.sequences, past_key_values=out.past_key_values, max_new_tokens=2)


@pytest.mark.parametrize("kind", ["same", "different"])
def test_a_cache_of_a_static_policy_has_newest_states_with_one_tokenizer(kind):
    """With one tokenizer the newest states are always available; readings do not keep them unless requested."""
    given = members(kind)
    ensemble = endless(given, UniformPolicy())
    out = ensemble.generate(**encode(TEXTS[0]), max_new_tokens=3, return_dict_in_generate=True)
    ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members, pooled_tokens=1)))
    if kind == "different":
        with pytest.raises(InputError, match=r"newest 0 tokens.*reads 1 now.*new_cache"):
            ensemble.generate(input_ids=out.sequences, past_key_values=out.past_key_values, max_new_tokens=2)
        return
    again = ensemble.generate(input_ids=out.sequences, past_key_values=out.past_key_values, max_new_tokens=2)
    assert again.shape[1] == out.sequences.shape[1] + 2


@pytest.mark.parametrize("kind", ["same", "different"])
def test_a_cache_from_inference_mode_can_be_continued_outside_of_it(kind):
    given = members(kind)
    ids = encode(TEXTS[0])["input_ids"]
    whole, looker = Looker(), Looker()
    with torch.no_grad():
        endless(given, whole, span_length=1)(ids, prompt_length=2)
    ensemble = endless(given, looker, span_length=1)
    with torch.inference_mode():
        cache = ensemble(ids[:, :-2], prompt_length=2).past_key_values
    with torch.no_grad():
        ensemble(ids[:, -2:], past_key_values=cache)
    assert looker.seen.keys() == whole.seen.keys()
    for text, entries in whole.seen.items():
        for one, other in zip(entries[0], looker.seen[text][0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("pooled", [0, None, 2.5, True])
def test_numbers_of_tokens_that_are_none(pooled):
    looker = Looker()
    looker.pooled_tokens = pooled
    with pytest.raises(PolicyError, match=f"pooled_tokens={pooled}"):
        endless(members("same"), looker)


def test_policies_of_before_see_the_newest_token_alone():
    config = PolicyConfig(member_hidden_sizes=[32, 48])
    assert config.pooled_tokens > 1
    fields = config.to_dict()
    assert PolicyConfig.from_dict(fields).pooled_tokens == config.pooled_tokens
    assert PolicyConfig.from_dict({k: v for k, v in fields.items() if k != "pooled_tokens"}).pooled_tokens == 1


def test_means_of_padded_and_short_rows():
    states = torch.tensor([[[9.0], [1.0], [2.0], [6.0]], [[1.0], [2.0], [3.0], [5.0]]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    found = with_means(states, mask, 3, 2)
    torch.testing.assert_close(found, torch.tensor([[[2.0, 1.5], [6.0, 3.0]], [[3.0, 2.0], [5.0, 10 / 3]]]))
    assert with_means(states[:1, 1:2], None, 8, 1).tolist() == [[[1.0, 1.0]]]
    nan = states.masked_fill(mask[..., None] == 0, torch.nan)
    assert torch.equal(with_means(nan, mask, 3, 2), found)


def test_columns_are_forgotten_no_earlier_than_they_can_be_needed():
    """Few states are kept for texts of any length; if too many columns are removed, `crop` returns `False`."""
    columns = ColumnStates(4)
    columns.record()
    states = torch.randn(2, 1000, 3)
    for end in range(1, 1001):
        torch.testing.assert_close(
            columns.add(states[:, end - 1 : end], end, 1, None), with_means(states[:, :end], None, 4, 1)
        )
    assert columns._store.shape[1] < 200
    assert columns.crop(960)
    again = columns.add(states[:, 960:962], 962, 2, None)
    torch.testing.assert_close(again, with_means(states[:, :962], None, 4, 2))
    assert columns.add(states[:, 962:990], 990, 0, None) is None
    many = columns.add(states[:, 990:], 1000, 10, None)
    torch.testing.assert_close(many, with_means(states, None, 4, 10))
    assert not columns.crop(100)
    gap = columns.add(states[:, 90:100], 100, 7, None)
    torch.testing.assert_close(gap, with_means(states[:, :100], None, 4, 7))
    twin = columns.copy()
    for one in (columns, twin):
        found = one.add(states[:, 100:500], 500, 400, None)
        torch.testing.assert_close(found, with_means(states[:, :500], None, 4, 400))


def test_a_long_text_in_one_forward_pass():
    """Means over a text that is much longer than the kept states."""
    given = members("same")
    looker = Looker()
    ensemble = endless(given, looker, span_length=9)
    ids = torch.randint(20, 300, (2, 230), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ensemble(ids, prompt_length=5)
    assert len(looker.seen) == 2 * len(range(5, 231, 9))
    for row in ids:
        for end in range(5, 231, 9):
            [found] = looker.seen[ensemble.tokenizer.decode(row[:end].tolist(), skip_special_tokens=True)]
            for (model, _), hidden in zip(given, found, strict=True):
                torch.testing.assert_close(hidden, _expected(model, row[:end]), atol=2e-4, rtol=1e-3)
