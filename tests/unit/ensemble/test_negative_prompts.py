"""Ensembles with `mixing="guidance"`: transformers' classifier-free guidance, and members with a negative prompt."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.errors import ConfigError, InputError
from tests.support.different_tokenizers import TRACED, assert_close, encoded, forced, member, stepped
from tests.support.ensembles import TEXTS, columns_read, encode, endless, own_logits
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes

NEGATIVE = ("She said no", "The sad 12")
GREEDY = {"do_sample": False, "max_new_tokens": 8}


def guided(architecture="llama", scale=1.5, policy=None, **settings):
    """One model twice."""
    return endless(
        [pair(architecture)] * 2, policy, mixing="guidance", mixing_kwargs={"guidance_scale": scale}, **settings
    )


def ids_of(text):
    return encode(text)["input_ids"]


# The law: transformers' own guidance


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mamba"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("negative", [None, NEGATIVE[0]])
def test_one_text_is_what_transformers_writes(architecture, scale, negative):
    ensemble = guided(architecture, scale)
    options = {} if negative is None else {"negative_prompt_ids": ids_of(negative)}
    settings = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    found = ensemble.generate(ids_of(TEXTS[0]), **settings, **options)
    # a recurrent state is no `past_key_values`, so transformers needs to read the whole text again
    again = {"use_cache": False} if architecture == "mamba" else {}
    model = ensemble.members[0].model
    expected = model.generate(ids_of(TEXTS[0]), **settings, **options, **again, guidance_scale=scale, eos_token_id=None)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=0)


def test_samples_are_what_transformers_samples():
    ensemble = guided()
    options = {"do_sample": True, "top_k": 20, "temperature": 0.8, "max_new_tokens": 12}
    options |= {"negative_prompt_ids": ids_of(NEGATIVE[0])}
    torch.manual_seed(3)
    found = ensemble.generate(ids_of(TEXTS[0]), **options)
    torch.manual_seed(3)
    model = ensemble.members[0].model
    expected = model.generate(ids_of(TEXTS[0]), **options, guidance_scale=1.5, eos_token_id=None)
    assert torch.equal(found, expected)


def test_scale_1_is_the_model():
    ensemble = guided(scale=1.0)
    expected = ensemble.members[0].model.generate(**encode(*TEXTS), **GREEDY, eos_token_id=None)
    assert torch.equal(ensemble.generate(**encode(*TEXTS), **GREEDY), expected)


def test_without_weight_the_negative_prompt_is_not_read():
    """Law: all weight on the first member is the model, bitwise, and costs one pass."""
    ensemble = guided(policy=StaticPolicy([1.0, 0.0]))
    model = ensemble.members[0].model
    with columns_read(model) as calls:
        found = ensemble.generate(**encode(TEXTS[0]), **GREEDY, **TRACED)
    assert len(calls[0]) == GREEDY["max_new_tokens"]
    expected = model.generate(**encode(TEXTS[0]), **GREEDY, **TRACED, eos_token_id=None)
    assert torch.equal(stepped(found), stepped(expected))


# Rows, beams, teacher forcing, caches


def test_rows_with_prompts_of_different_lengths_are_what_they_are_alone():
    ensemble = guided()
    negative = encode(*NEGATIVE, NEGATIVE[0] + NEGATIVE[1])
    assert not negative["attention_mask"].all()
    found = ensemble.generate(
        **encode(*TEXTS),
        **GREEDY,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_attention_mask=negative["attention_mask"],
    )
    for row, (text, other) in enumerate(zip(TEXTS, (*NEGATIVE, NEGATIVE[0] + NEGATIVE[1]), strict=True)):
        alone = ensemble.generate(ids_of(text), **GREEDY, negative_prompt_ids=ids_of(other))
        assert torch.equal(found[row, -8:], alone[0, -8:])


def test_one_negative_prompt_is_for_all_rows_and_for_all_other_members():
    ensemble = endless([pair()] * 3, mixing="guidance", mixing_kwargs={"guidance_scale": 1.25})
    found = ensemble.generate(**encode(*TEXTS), **GREEDY, negative_prompt_ids=ids_of(NEGATIVE[0]))
    repeated = ids_of(NEGATIVE[0]).expand(3, -1)
    assert torch.equal(found, guided().generate(**encode(*TEXTS), **GREEDY, negative_prompt_ids=repeated))


def test_beams_and_samples_keep_their_negative_prompts():
    ensemble = guided()
    negative = {"negative_prompt_ids": encode(NEGATIVE[1] + NEGATIVE[0])["input_ids"]}
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    out = ensemble.generate(**encode(TEXTS[0]), **options, **negative, return_dict_in_generate=True, output_scores=True)
    own = ensemble.new_cache().call.encoded(ids_of(TEXTS[0]), None)[0][0]
    width = max(len(own), negative["negative_prompt_ids"].shape[1])
    members = torch.zeros(2, 2, width, dtype=torch.long)
    mask = torch.zeros_like(members)
    for index, ids in enumerate((torch.tensor(own), negative["negative_prompt_ids"][0])):
        members[:, index, width - len(ids) :], mask[:, index, width - len(ids) :] = ids, 1
    with torch.no_grad():
        logits = ensemble(
            out.sequences, prompt_length=len(own), member_input_ids=members, member_attention_mask=mask
        ).logits[:, len(own) - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, out.sequences[:, len(own) :, None])
    torch.testing.assert_close(out.sequences_scores, logps.sum((1, 2)), atol=1e-4, rtol=0)


def test_teacher_forcing_equals_stepping():
    """Law: `forward` has the default negative prompt of `generate`."""
    ensemble, inputs = guided(), encode(*TEXTS)
    out = ensemble.generate(**inputs, **GREEDY, **TRACED)
    assert_close(forced_with_prompt_logits(ensemble, inputs, out.sequences), stepped(out))
    labels = out.sequences.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.long)], 1)
    with torch.no_grad():
        loss = ensemble(out.sequences, attention_mask=mask, labels=labels).loss
    chosen = stepped(out).log_softmax(-1).gather(-1, out.sequences[:, -8:, None])
    torch.testing.assert_close(loss, -chosen.mean(), atol=1e-5, rtol=0)


def forced_with_prompt_logits(ensemble, inputs, sequences):
    width = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(sequences[:, width:])], dim=1)
    with torch.no_grad():
        return ensemble(sequences, attention_mask=mask, prompt_length=width).logits[:, width - 1 : -1]


def test_a_call_can_be_continued_with_its_cache():
    ensemble, ids = guided(), ids_of(TEXTS[0])
    negative = {"negative_prompt_ids": ids_of(NEGATIVE[0])}
    expected = ensemble.generate(ids, **GREEDY, **negative)
    cache = ensemble.new_cache()
    part = ensemble.generate(ids, do_sample=False, max_new_tokens=3, past_key_values=cache, **negative)
    assert torch.equal(ensemble.generate(part, do_sample=False, max_new_tokens=5, past_key_values=cache), expected)
    with pytest.raises(InputError, match="negative_prompt_ids with past_key_values"):
        ensemble.generate(expected, **GREEDY, past_key_values=cache, **negative)


def test_a_rendered_chat_is_guided_by_its_last_token_or_by_the_negative_prompt():
    model, tokenizer = pair(tokenizer=chat_tokenizer())
    ensemble = endless([(model, tokenizer)] * 2, mixing="guidance")
    chat = ensemble.tokenizer.apply_chat_template([{"role": "user", "content": "a girl"}])
    for options in ({}, {"negative_prompt_ids": ids_of(NEGATIVE[0])}):
        expected = model.generate(chat["input_ids"], **GREEDY, **options, guidance_scale=1.5, eos_token_id=None)
        assert torch.equal(ensemble.generate(**chat, **GREEDY, **options), expected)


def chat_tokenizer():
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return tokenizer


def test_own_prompts_of_members_are_kept():
    """Prompts that differ are the user's own choice."""
    ensemble = guided()
    own = torch.stack([ids_of(TEXTS[0])[:, :4], ids_of(NEGATIVE[0])[:, :4]], 1)
    found = ensemble.generate(ids_of(TEXTS[0])[:, :4], **GREEDY, member_input_ids=own)
    expected = ensemble.generate(ids_of(TEXTS[0])[:, :4], **GREEDY, negative_prompt_ids=ids_of(NEGATIVE[0])[:, :4])
    assert torch.equal(found, expected)


def test_a_contrast_can_give_the_weak_member_less_to_read():
    """The paper's "context window": the weak member reads the last token of the prompt alone."""
    ensemble = endless([pair("llama"), pair("gpt2", 1)], mixing="contrast")
    ids = ids_of(TEXTS[0])
    out = ensemble.generate(ids, **GREEDY, **TRACED, negative_prompt_ids=ids[:, -1:])
    strong, weak = (entry.model for entry in ensemble.members)
    own, other = own_logits(strong, ids[0])[-1].log_softmax(-1), own_logits(weak, ids[0, -1:])[-1].log_softmax(-1)
    expected = (own - other).masked_fill(own.exp() < 0.1 * own.exp().max(), -torch.inf).softmax(-1)
    torch.testing.assert_close(out.logits[0][0].double().softmax(-1), expected, atol=1e-5, rtol=0)


# Different tokenizers, and one model in memory


def test_members_with_different_tokenizers_read_the_negative_prompt_in_their_own_tokens():
    members = [member(), member("gpt2", raw_bytes, 1)]
    ensemble = EnsembleForCausalLM.from_members(members, mixing="guidance", grain="auto")
    inputs = encoded(ensemble, *TEXTS)
    negative = encoded(ensemble, NEGATIVE[0])["input_ids"]
    options = {**GREEDY, **TRACED, "negative_prompt_ids": negative}
    together = ensemble.generate(**inputs, **options)
    first = ensemble.tokenizer(TEXTS[0])["input_ids"]
    second = members[1][1](NEGATIVE[0])["input_ids"]
    width = max(len(first), len(second))
    own = torch.tensor([[[0] * (width - len(ids)) + list(ids) for ids in (first, second)]])
    mask = torch.tensor([[[0] * (width - len(ids)) + [1] * len(ids) for ids in (first, second)]])
    alone = ensemble.generate(
        torch.tensor([first]), **GREEDY, **TRACED, member_input_ids=own, member_attention_mask=mask
    )
    assert torch.equal(alone.sequences[0, -8:], together.sequences[0, -8:])
    default = ensemble.generate(**inputs, **GREEDY, **TRACED)
    assert_close(forced(ensemble, inputs, default.sequences), stepped(default))


@pytest.mark.parametrize("given", ["name", "pair"])
def test_a_model_that_is_given_twice_is_in_memory_once(tmp_path, given):
    model, tokenizer = pair()
    if given == "name":
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    entry = str(tmp_path) if given == "name" else (model, tokenizer)
    ensemble = EnsembleForCausalLM.from_members([entry, entry], mixing="guidance")
    first, second = ensemble.members
    assert first.model is second.model
    assert torch.equal(
        ensemble.generate(ids_of(TEXTS[0]), **GREEDY),
        model.generate(ids_of(TEXTS[0]), **GREEDY, guidance_scale=1.5),
    )
    if given == "name":
        ensemble.save_pretrained(tmp_path / "saved", save_members=True)
        assert len(list((tmp_path / "saved" / "members").iterdir())) == 1
        saved = EnsembleForCausalLM.from_pretrained(tmp_path / "saved")
        assert saved.members[0].model is saved.members[1].model
    ensemble.to(torch.float64)
    assert first.dtype == second.dtype == torch.float64


def test_a_name_with_other_options_is_loaded_again(tmp_path):
    model, tokenizer = pair()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ensemble = EnsembleForCausalLM.from_members(
        [str(tmp_path)] * 3, member_kwargs=[None, {"attn_implementation": "eager"}, None]
    )
    first, second, third = ensemble.members
    assert first.model is third.model
    assert first.model is not second.model
    assert second.model.config._attn_implementation == "eager"


# What is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 in `generate`.*mixing_kwargs={'guidance_scale': 2.0}"),
        ({"negative_prompt_ids": torch.ones(2, 3, dtype=torch.long)}, "has 2 rows for 3 prompts; give one row, or one"),
        ({"negative_prompt_ids": [[1, 2]]}, "negative_prompt_ids must be a 2-D tensor"),
        ({"negative_prompt_ids": torch.tensor([[999]])}, "negative_prompt_ids has the id 999"),
        (
            {"negative_prompt_ids": torch.tensor([[1, 2]]), "negative_prompt_attention_mask": torch.tensor([[0, 0]])},
            "negative_prompt_attention_mask masks all of row 0",
        ),
        (
            {"negative_prompt_ids": torch.tensor([[1, 2]]), "negative_prompt_attention_mask": torch.tensor([[1]])},
            "negative_prompt_attention_mask has 1 columns",
        ),
        ({"negative_prompt_ids": torch.ones(1, 300, dtype=torch.long)}, "the prompt has 300 tokens for member"),
    ],
)
def test_negative_prompts_that_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        guided().generate(**encode(*TEXTS), **GREEDY, **options)


def test_a_negative_prompt_that_nobody_reads_is_refused():
    ensemble = endless([pair()] * 2)
    negative = {"negative_prompt_ids": ids_of(NEGATIVE[0])}
    with pytest.raises(InputError, match="negative_prompt_ids has no effect with mixing='linear'"):
        ensemble.generate(ids_of(TEXTS[0]), **GREEDY, **negative)
    found = ensemble.generate(ids_of(TEXTS[0]), **GREEDY, **negative, guidance_scale=1.5)  # of the mixture
    assert torch.equal(found, guided().generate(ids_of(TEXTS[0]), **GREEDY, **negative))


def test_a_forward_pass_needs_to_know_the_prompt():
    with pytest.raises(InputError, match="the length of the prompt is unknown or 0; pass prompt_length"):
        guided()(ids_of(TEXTS[0]))


def test_a_plain_generate_has_guidance_of_its_own():
    with pytest.raises(ConfigError, match="guidance_scale and negative_prompt_ids, without the processor"):
        EnsembleLogitsProcessor(guided())
