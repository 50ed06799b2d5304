"""`cache_implementation="static"`: the members' caches have a fixed capacity, and texts stay the same."""

from functools import cache

import pytest
import torch
from transformers import GenerationConfig

from hf_rlae import EnsembleForCausalLM
from hf_rlae.members import Member, StaticCaches
from hf_rlae.members.paths import Chain, Path
from hf_rlae.members.ragged_cache import RaggedCache
from hf_rlae.members.ragged_run import BatchRunner
from hf_rlae.members.slot_cache import SlotCache
from tests.support.different_tokenizers import assert_close, encoded, member, stepped, trio
from tests.support.ensembles import TEXTS, endless, policy_of_text
from tests.support.models import pair, pairs

TRACED = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 10}
STATIC = {"cache_implementation": "static"}

ENSEMBLES = {
    "one member": lambda: endless(pairs(["llama"])),
    "one tokenizer": lambda: endless(pairs(["qwen3", "gpt2"]), policy_of_text, span_length=3),
    "windows and a recurrent member": lambda: endless(pairs(["gemma3", "mamba", "llama"])),
    "different tokenizers": lambda: trio(policy_of_text, span_length=3),
    "bytes": lambda: trio(grain="byte"),
}
DECODING = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
}


@cache
def built(kind):
    return ENSEMBLES[kind]()


def both(ensemble, *texts, **options):
    """The outputs of `generate` with dynamic and with static caches."""
    inputs, outputs = encoded(ensemble, *texts), []
    for more in ({}, STATIC):
        torch.manual_seed(0)
        outputs.append(ensemble.generate(**inputs, **{**TRACED, **options}, **more))
    return outputs


@pytest.mark.parametrize("kind", ENSEMBLES)
@pytest.mark.parametrize(
    ("how", "rows"), [(how, 1 if how == "prompt lookup" else 3) for how in DECODING] + [("greedy", 1), ("sampled", 8)]
)
def test_texts_are_those_of_dynamic_caches(kind, how, rows):
    dynamic, static = both(built(kind), *(TEXTS * 3)[:rows], **DECODING[how])
    assert torch.equal(static.sequences, dynamic.sequences)
    assert_close(stepped(static), stepped(dynamic), atol=1e-5)


def test_one_member_is_that_member_with_its_own_static_cache():
    model, tokenizer = pair("llama")
    ensemble = endless([(model, tokenizer)])
    inputs = encoded(ensemble, *TEXTS)
    options = {**TRACED, **STATIC, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    own, got = model.generate(**inputs, **options), ensemble.generate(**inputs, **options)
    assert torch.equal(got.sequences, own.sequences)
    assert_close(stepped(got), stepped(own), atol=1e-5)


@pytest.mark.parametrize("kind", ["one tokenizer", "different tokenizers"])
def test_a_text_that_outgrows_the_capacity(kind, monkeypatch):
    """The capacity follows from `max_length`, but a member of short tokens can need more of its own."""
    monkeypatch.setattr("hf_rlae.members.ragged_cache._LEAST_CAPACITY", 4)
    monkeypatch.setattr(
        "hf_rlae.ensemble.generation_ensemble.StaticCaches",
        lambda columns, *rest, **more: StaticCaches(1, *rest, **more),
    )
    dynamic, static = both(built(kind), *TEXTS, max_new_tokens=30, do_sample=False)
    assert torch.equal(static.sequences, dynamic.sequences)
    assert_close(stepped(static), stepped(dynamic), atol=1e-5)


class Observing:
    """A policy that records hidden states, with means over several tokens, and what members would write next."""

    pooled_tokens = 3
    lookahead_tokens = 2

    def __init__(self):
        self.seen = []

    def __call__(self, state):
        self.seen.append([*state.hidden_states, *state.look_ahead(2)])
        return torch.full((state.batch_size, state.num_members), 1 / state.num_members)


@pytest.mark.parametrize("members", ["one tokenizer", "different tokenizers"])
def test_what_a_policy_observes(members):
    policy = Observing()
    ensemble = (
        endless(pairs(["qwen3", "gpt2"]), policy, span_length=4)
        if members == "one tokenizer"
        else trio(policy, span_length=4)
    )
    both(ensemble, *TEXTS, do_sample=False)
    half = len(policy.seen) // 2
    assert half > 1
    for dynamic, static in zip(policy.seen[:half], policy.seen[half:], strict=True):
        torch.testing.assert_close(static, dynamic, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["one tokenizer", "different tokenizers"])
def test_a_cache_that_goes_on_outside_of_generate(kind):
    """Caches made in inference mode are copied where they are written to outside of it."""
    ensemble = built(kind)
    inputs, logits = encoded(ensemble, TEXTS[0]), []
    for more in ({}, STATIC):
        past = ensemble.new_cache()
        text = ensemble.generate(**inputs, past_key_values=past, max_new_tokens=4, do_sample=False, **more)
        logits.append(ensemble(text[:, past.seen :], past_key_values=past).logits)
    assert_close(logits[1], logits[0], atol=1e-5)


@pytest.mark.parametrize("how", ["greedy", "beams"])
@pytest.mark.parametrize("kind", ["one tokenizer", "different tokenizers"])
def test_shapes_and_places_stay_the_same(kind, how):
    """What CUDA graphs need: steps of 1, 2 or 4 columns, masks as wide as the cache, which stays where it is."""
    ensemble, shapes, places = built(kind), [], {}

    def note(module, args, given):
        if given["past_key_values"].get_seq_length() == 0:
            return
        past = given["past_key_values"]
        ids, mask = given["input_ids"], given["attention_mask"]
        shapes.append((ids.shape, (next(iter(mask.values())) if isinstance(mask, dict) else mask).shape))
        places.setdefault(id(past), set()).add(past.layers[0].keys.data_ptr())

    model = ensemble.members[0].model
    with model.register_forward_pre_hook(note, with_kwargs=True):
        ensemble.generate(**encoded(ensemble, *TEXTS), **STATIC, **DECODING[how], max_new_tokens=20)
    assert {ids[1] for ids, _ in shapes} <= {1, 2, 4}
    assert {mask[-1] for _, mask in shapes} == {64}
    assert len(shapes) > 5
    assert len(set(shapes)) <= 3
    assert [len(addresses) for addresses in places.values()] == [1]


def test_which_members_have_static_caches():
    """Sliding windows and recurrent states keep the caches of their models where the columns of the text are read."""
    ensemble = built("windows and a recurrent member")
    past = ensemble.new_cache()
    ensemble.generate(**encoded(ensemble, *TEXTS), past_key_values=past, max_new_tokens=2, **STATIC)
    kinds = [getattr(run, "_cache", {}).get("past_key_values") for run in past.runs]
    assert [isinstance(kind, SlotCache) for kind in kinds] == [False, False, True]


def test_members_with_windows_that_read_their_own_tokens():
    ensemble = built("different tokenizers")
    past = ensemble.new_cache()
    ensemble.generate(**encoded(ensemble, *TEXTS), past_key_values=past, max_new_tokens=2, **STATIC)
    assert [run.runner.cache.columns is not None for run in past.runs] == [True, True, True]


@pytest.mark.parametrize(
    "options", [{}, {"generation_config": GenerationConfig(max_new_tokens=2)}, {**STATIC, "use_cache": False}]
)
def test_without_it_caches_are_dynamic(options):
    ensemble = built("one tokenizer")
    past = ensemble.new_cache(use_cache=options.get("use_cache", True))
    ensemble.generate(**encoded(ensemble, *TEXTS), **{"max_new_tokens": 2, "past_key_values": past, **options})
    assert not any(isinstance(run._cache.get("past_key_values"), SlotCache) for run in past.runs)


def test_a_static_cache_by_the_generation_config_is_saved(tmp_path):
    ensemble = endless(pairs(["llama", "gpt2"]))
    ensemble.generation_config.cache_implementation = "static"
    ensemble.save_pretrained(tmp_path, save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path)
    past = loaded.new_cache()
    loaded.generate(**encoded(loaded, *TEXTS), past_key_values=past, max_new_tokens=2)
    assert all(isinstance(run._cache["past_key_values"], SlotCache) for run in past.runs)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_even_single_columns_need_no_mask(architecture):
    """Off the CPU they have none, where every layer sees all tokens."""
    rows = [tuple(range(5, 25)), tuple(range(40, 60))]
    masks, outputs = [], []
    for may in (True, False):
        runner = BatchRunner(Member(*member(architecture)))
        assert not runner._may_leave_masks_out  # on a CPU
        if may:
            runner._may_leave_masks_out = architecture != "gemma3"
        with runner.member.model.register_forward_pre_hook(
            lambda _module, _args, given: masks.append(given["attention_mask"] is None), with_kwargs=True
        ):
            runner.run([Path(Chain(), row[:10], 0, 1) for row in rows])
            outputs.append(runner.run([Path(Chain(), row[:11], 10, 1) for row in rows]).logits)
            uneven = [Path(Chain(), rows[0][:12], 11, 1), Path(Chain(), rows[1][:13], 11, 1)]
            outputs.append(runner.run(uneven).logits)
    assert masks == [False, architecture != "gemma3", False, False, False, False]
    torch.testing.assert_close(outputs[:2], outputs[2:])


def test_a_cache_of_rows_that_grows_is_not_compiled():
    assert not RaggedCache().is_compileable
    assert RaggedCache(8).is_compileable


@pytest.mark.parametrize("kind", ["one tokenizer", "different tokenizers"])
def test_rows_that_are_kept(kind):
    """Rollouts continue only the texts that have not ended, past the length of the first call."""
    ensemble, texts = built(kind), []
    for more in ({}, STATIC):
        past = ensemble.new_cache()
        options = {"past_key_values": past, "do_sample": False, **more}
        first = ensemble.generate(**encoded(ensemble, *TEXTS), **options, max_new_tokens=4)
        past.keep_rows(torch.tensor([2, 0]))
        texts.append(
            ensemble.generate(first[[2, 0]], attention_mask=past_mask(past, first), **options, max_new_tokens=70)
        )
    assert torch.equal(texts[0], texts[1])


def past_mask(past, ids):
    """The mask of the texts in a cache, and of their last token."""
    mask = torch.ones(past.batch_size, ids.shape[1], dtype=torch.long)
    if past.mask is not None:
        mask[:, : past.mask.shape[1]] = past.mask
    return mask
