"""Bad input raises a typed error that names the argument and how to fix it, before any forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, LlamaModel, T5Config

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, StaticPolicy, UniformPolicy
from hf_rlae.errors import ConfigError, InputError, MemberError, PolicyError, TokenizerError
from tests.support.ensembles import encode
from tests.support.models import pair
from tests.support.refusals import different, refused, same
from tests.support.rlae import CHAT_TEMPLATES
from tests.support.tokenizers import byte_level_bpe, characters, lower_casing, raw_bytes, sentencepiece_bpe


@pytest.fixture(params=[same, different], ids=["one_tokenizer", "two_tokenizers"])
def ensemble(request):
    return request.param()


# generate


def test_no_prompt(ensemble):
    with refused(InputError, "input_ids", "pass a prompt", ensemble=ensemble):
        ensemble.generate(max_new_tokens=3)


@pytest.mark.parametrize("shape", [(1, 0), (0, 4)])
def test_empty_prompt(ensemble, shape):
    with refused(InputError, "input_ids is empty", "bos token", ensemble=ensemble):
        ensemble.generate(torch.zeros(shape, dtype=torch.long))


def test_one_dimension(ensemble):
    with refused(InputError, "2-D", ensemble=ensemble):
        ensemble.generate(torch.tensor([3, 4]))


def test_right_padding(ensemble):
    inputs = encode("the dogs ran", "the")
    inputs = {name: value.flip(1) for name, value in inputs.items()}
    with refused(InputError, "attention_mask", "left", ensemble=ensemble):
        ensemble.generate(**inputs)


def test_all_masked_row(ensemble):
    inputs = encode("the dogs ran", "the")
    inputs["attention_mask"][1] = 0
    with refused(InputError, "attention_mask", "row 1", ensemble=ensemble):
        ensemble.generate(**inputs)


def test_mask_of_another_shape(ensemble):
    with refused(InputError, "attention_mask", "columns", ensemble=ensemble):
        ensemble.generate(torch.full((1, 4), 5), attention_mask=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_union(ensemble, bad):
    with refused(InputError, str(bad), "union vocabulary", "ensemble.tokenizer", ensemble=ensemble):
        ensemble.generate(torch.tensor([[5, bad]]))


def test_prompt_longer_than_a_context(ensemble):
    with refused(InputError, "256", "shorten", ensemble=ensemble):
        ensemble.generate(torch.full((1, 257), 40))


def test_prompt_longer_than_the_context_of_a_member_with_shorter_tokens():
    """The length of the prompt counts in each member's own tokens."""
    members = [pair("llama"), pair("gpt2", 1, raw_bytes(), max_position_embeddings=20)]
    ensemble = EnsembleForCausalLM.from_members(members)
    inputs = ensemble.tokenizer(["Once upon a time, there was a"], return_tensors="pt")
    assert inputs["input_ids"].shape[1] < 20
    with refused(InputError, "29 tokens", "20", ensemble=ensemble):
        ensemble.generate(**inputs)


def test_embeddings(ensemble):
    with refused(InputError, "inputs_embeds", ensemble=ensemble):
        ensemble.generate(inputs_embeds=torch.zeros(1, 2, 32))


def test_guidance():
    ensemble = different()
    with refused(InputError, "guidance_scale", "leave", ensemble=ensemble):
        ensemble.generate(**encode("the dogs ran"), guidance_scale=1.5)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.ones(1, 3, 4, dtype=torch.long), ["(1, 2, L)"]),
        (torch.ones(1, 4, dtype=torch.long), ["(1, 2, L)"]),
        (torch.full((1, 2, 4), 10**6), ["outside"]),
    ],
)
def test_member_prompts_that_do_not_fit(ensemble, ids, words):
    with refused(InputError, "member_input_ids", *words, ensemble=ensemble):
        ensemble.generate(torch.full((1, 4), 5), member_input_ids=ids)


def test_a_masked_member_prompt(ensemble):
    ids = torch.full((1, 2, 4), 5)
    mask = torch.ones_like(ids)
    mask[0, 1] = 0
    with refused(InputError, "member_attention_mask", "member 1", ensemble=ensemble):
        ensemble.generate(torch.full((1, 4), 5), member_input_ids=ids, member_attention_mask=mask)


def test_chunks_of_a_prompt():
    ensemble = same()
    with refused(InputError, "prefill_chunk_size=2", "leave", ensemble=ensemble):
        ensemble.generate(**encode("the dogs ran"), prefill_chunk_size=2)


def test_settings_in_a_configuration_are_looked_at():
    """Settings in a `GenerationConfig` are checked like those among the arguments."""
    ensemble = different()
    with refused(InputError, "guidance_scale=1.5", ensemble=ensemble):
        ensemble.generate(**encode("the dogs ran"), generation_config=GenerationConfig(guidance_scale=1.5))
    ensemble = different(draw="token")
    config = GenerationConfig(do_sample=True, num_beams=2)
    with refused(InputError, "num_beams=2 with draw", ensemble=ensemble):
        ensemble.generate(**encode("the dogs ran"), generation_config=config)


def chat_of(ensemble):
    for member, template in zip(ensemble.members, CHAT_TEMPLATES, strict=True):
        member.tokenizer.chat_template = template
    try:
        return ensemble.tokenizer.apply_chat_template([[{"role": "user", "content": "the dogs ran"}]])
    finally:
        for member in ensemble.members:
            member.tokenizer.chat_template = None


def test_a_chat_continues_with_its_messages(ensemble):
    """A chat cannot be continued with the cache of the last call: members would read the old prompt again."""
    chat = chat_of(ensemble)
    out = ensemble.generate(**chat, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    options = {"past_key_values": out.past_key_values, "max_new_tokens": 3}
    own = {name: value for name, value in chat.items() if name.startswith("member_")}
    with refused(InputError, "belongs to a chat", "apply_chat_template", ensemble=ensemble):
        ensemble.generate(out.sequences, **options, **own)
    if ensemble.union is not None:
        with refused(InputError, "belongs to a chat", ensemble=ensemble):
            ensemble.generate(out.sequences, **options)


# forward


def test_members_prompts_that_end_nowhere(ensemble):
    chat = chat_of(ensemble)
    with refused(InputError, "member_input_ids without prompt_length", ensemble=ensemble):
        ensemble(**chat)
    with torch.no_grad():
        logits = ensemble(**chat, prompt_length=chat["input_ids"].shape[1]).logits[:, -1]
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = ensemble.generate(**chat, **options).logits[0]
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=0)


def test_labels_inside_a_prompt_without_distributions():
    """Labels inside a prompt raise an error if tokenizers differ; with one tokenizer there is a loss."""
    inputs = encode("the dogs ran 12 miles")
    ids = inputs["input_ids"]
    ensemble = different()
    with refused(InputError, "labels: row 0", "smaller prompt_length", ensemble=ensemble):
        ensemble(input_ids=ids, labels=ids, prompt_length=3)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 3, -100)
    assert ensemble(input_ids=ids, labels=labels, prompt_length=3).loss.isfinite()
    assert same()(input_ids=ids, labels=ids, prompt_length=3).loss.isfinite()


def test_labels_of_another_shape(ensemble):
    with refused(InputError, "labels", "-100", ensemble=ensemble):
        ensemble(torch.full((1, 4), 5), labels=torch.full((1, 5), 5))


def test_ids_outside_the_union_in_forward(ensemble):
    with refused(InputError, "union vocabulary", ensemble=ensemble):
        ensemble(torch.tensor([[5, 10**6]]))


# Weights


@pytest.mark.parametrize("weights", [[0.5, -0.5], [float("nan"), 1], [0, 0], []])
def test_static_weights_that_are_none(weights):
    with refused(ConfigError, f"weights={weights}", "one number per member"):
        StaticPolicy(weights)


def test_static_weights_for_another_number_of_members():
    with refused(ConfigError, "policy", "3", "2"):
        same(StaticPolicy([0.2, 0.3, 0.5]))


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (torch.tensor([[0.5, -0.5]]), "at least 0"),
        (torch.tensor([[1.5, -0.5]]), "at least 0"),  # sums to 1
        (torch.tensor([[float("nan"), 1.0]]), "finite"),
        (torch.tensor([[0.0, 0.0]]), "sum"),
        (torch.tensor([[0.2, 0.3, 0.5]]), "(1, 2)"),
        ("half and half", "str"),
        (torch.tensor([[0.5 + 0j, 0.5]]), "complex64"),
        (torch.tensor([[True, False]]), "torch.bool"),
        (torch.full((1, 2), 0.5, device="meta"), "on meta"),
        (torch.full((1, 2), 0.5).to_sparse(), "sparse"),
    ],
)
@pytest.mark.parametrize("make", [same, different], ids=["one_tokenizer", "two_tokenizers"])
def test_a_policy_that_answers_something_else(make, answer, word):
    ensemble = make(lambda state: answer)
    with refused(PolicyError, word, ensemble=ensemble):
        ensemble.generate(**encode("the dogs ran"), max_new_tokens=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_softmax_in_half_precision_is_in_order(dtype):
    ensemble = EnsembleForCausalLM.from_members(
        [pair("llama", seed) for seed in range(3)],
        lambda state: torch.zeros(state.batch_size, 3, dtype=dtype).softmax(-1),
    )
    out = ensemble.generate(**encode("the dogs ran"), max_new_tokens=1, return_dict_in_generate=True)
    torch.testing.assert_close(out.span_weights[0, 0], torch.full((3,), 1 / 3))


def test_a_policy_that_cannot_be_called():
    with refused(PolicyError, "callable"):
        same([0.5, 0.5])


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"span_length": 0}, ["span_length", "0"]),
        ({"span_length": 1.5}, ["span_length"]),
        ({"min_weight": 1.5}, ["min_weight"]),
        ({"max_active_members": 0}, ["max_active_members"]),
        ({"max_readings": 0}, ["max_readings"]),
        ({"mixing": "liner"}, ["mixing", "linear"]),
        ({"spanlength": 3}, ["spanlength", "span_length"]),
        ({"revisions": ["main"]}, ["revisions", "1 entries", "2 members"]),
        ({"member_kwargs": [{"trust_remote_code": True}, None]}, ["member_kwargs[0]", "loaded already"]),
        ({"end_token_ids": [[10**6], []]}, ["end_token_ids", "outside"]),
    ],
)
def test_options_that_cannot_be_used(options, words):
    with refused(ConfigError, *words):
        same(**options)


def test_config_checks_itself():
    with refused(ConfigError, "span_length"):
        EnsembleConfig(span_length=0)


@pytest.mark.parametrize("given", [[], "path", 3])
def test_members_that_are_no_list(given):
    with refused(ConfigError, "members"):
        EnsembleForCausalLM.from_members(given)


def test_a_member_that_is_nothing():
    with refused(MemberError, "members[1]", "(model, tokenizer)"):
        EnsembleForCausalLM.from_members([pair("llama"), 3])


# Members


def test_a_tokenizer_of_another_model():
    model, _ = pair("llama", 0, raw_bytes())
    with refused(TokenizerError, "belongs to another model"):
        EnsembleForCausalLM.from_members([(model, byte_level_bpe())])


def test_nan_weights():
    model, tokenizer = pair("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with refused(MemberError, "NaN", "up_proj"):
        EnsembleForCausalLM.from_members([(model, tokenizer)])


def test_an_encoder_decoder_model():
    config = T5Config(vocab_size=330, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with refused(MemberError, "encoder-decoder", "decoder-only"):
        EnsembleForCausalLM.from_members([(model, byte_level_bpe())])


def test_a_model_without_a_head():
    model, tokenizer = pair("llama")
    assert isinstance(model.model, LlamaModel)
    with refused(MemberError, "head", "AutoModelForCausalLM"):
        EnsembleForCausalLM.from_members([(model.model, tokenizer)])


def test_a_lossy_tokenizer():
    with refused(TokenizerError, "loses text"):
        EnsembleForCausalLM.from_members([pair("llama"), pair("llama", 1, lower_casing())])


def test_no_byte_in_common():
    latin, greek = characters(), only("αβγδ")
    with refused(TokenizerError, "in common"):
        EnsembleForCausalLM.from_members([pair("llama", 0, latin), pair("llama", 1, greek)])


def only(letters):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize("tokenizer", [byte_level_bpe, sentencepiece_bpe], ids=["one_tokenizer", "two_tokenizers"])
def test_no_member_has_an_end_token(tokenizer):
    members = [(model, copy.deepcopy(own)) for model, own in (pair("llama"), pair("llama", 1, tokenizer()))]
    for model, own in members:
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        own.eos_token = None
    with refused(ConfigError, "end_token_ids", "one list per member"):
        EnsembleForCausalLM.from_members(members)
    assert EnsembleForCausalLM.from_members(members, end_token_ids=[[7], []]) is not None


def test_a_policy_made_for_another_number_of_members():
    class ForThree(UniformPolicy):
        num_members = 3

    with refused(ConfigError, "policy", "ForThree", "3"):
        same(ForThree())
