"""A member that sees: its images, what the other members read, and that nothing changes without images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, Member, StaticPolicy
from hf_rlae.errors import InputError
from hf_rlae.members import PromptImages
from hf_rlae.members.images import encode_images
from hf_rlae.vocabulary import ByteVocabulary
from tests.support.ensembles import endless
from tests.support.models import pair
from tests.support.tiers import slow
from tests.support.vision import (
    NEW_TOKENS,
    PLACEHOLDERS,
    SEEING,
    TEMPLATE,
    completions,
    images_of,
    own_inputs,
    picture,
    texts_of,
    that_sees,
    with_text_member,
)

ALL = pytest.mark.parametrize("architecture", SEEING)
TWO_FAST = pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", *slow("idefics3", "gemma3")])
ENGINES = pytest.mark.parametrize("kind", ["one_tokenizer", "two_tokenizers"])
PLACES = pytest.mark.parametrize("place", [0, *slow(1)])


def one_hot(index: int) -> StaticPolicy:
    return StaticPolicy([float(at == index) for at in range(2)])


def own_completions(model: Any, tokenizer: Any, inputs: Any, *, only_text: bool) -> list[bytes]:
    """The bytes of what a model writes by itself; with different tokenizers an ensemble writes no special tokens."""
    vocabulary = ByteVocabulary(tokenizer, model.get_output_embeddings().weight.shape[0])
    silent = [[i] for i, piece in enumerate(vocabulary.pieces) if piece is None] if only_text else None
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, bad_words_ids=silent, eos_token_id=None)
    rows = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [b"".join(vocabulary.pieces[i] or b"" for i in row) for row in rows]


# one member


@ALL
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"do_sample": True, "num_return_sequences": 2}, id="samples"),
        pytest.param({"num_beams": 3, "num_return_sequences": 2}, id="beams"),
        pytest.param({"num_beams": 2, "use_cache": False}, id="beams without a cache", marks=pytest.mark.slow),
    ],
)
def test_one_member_is_its_own_generate(architecture, options):
    model, processor = that_sees(architecture)
    inputs = own_inputs(processor, images_of(architecture, 1, 2), texts_of(architecture))
    ensemble = EnsembleForCausalLM.from_members([(model, processor)])
    torch.manual_seed(0)
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
    torch.manual_seed(0)
    assert torch.equal(ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS, **options), expected)
    made = ensemble.processor(images=images_of(architecture, 1, 2), text=texts_of(architecture))
    assert all(torch.equal(made[name], value) for name, value in inputs.items())
    black = {**inputs, "pixel_values": torch.ones_like(inputs["pixel_values"])}
    if not options:  # the image counts
        assert not torch.equal(ensemble.generate(**black, max_new_tokens=NEW_TOKENS), expected)


@pytest.mark.parametrize("architecture", ["llava", "idefics3", "qwen2_vl"])
def test_rows_with_and_without_images(architecture):
    model, processor = that_sees(architecture)
    inputs = own_inputs(processor, images_of(architecture, 1), ["no picture", *texts_of(architecture)[:1]])
    ensemble = EnsembleForCausalLM.from_members([(model, processor)])
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert torch.equal(ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS), expected)


@ALL
def test_without_images_the_member_is_its_text_model(architecture):
    model, processor = that_sees(architecture)
    inputs = processor.tokenizer(["The dogs", "Once upon a time"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    ensemble = EnsembleForCausalLM.from_members([(model, processor)])
    text = EnsembleForCausalLM.from_members([(model, processor.tokenizer)])
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert torch.equal(ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS), expected)
    assert torch.equal(text.generate(**inputs, max_new_tokens=NEW_TOKENS), expected)
    assert ensemble.members[0].sees
    assert not text.members[0].sees


@ALL
def test_teacher_forcing_is_stepping(architecture):
    model, processor = that_sees(architecture)
    inputs = own_inputs(processor, images_of(architecture, 1, 2), texts_of(architecture))
    ensemble = endless([(model, processor)])
    stepped = ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True)
    whole = {**inputs, "input_ids": stepped.sequences}
    whole["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW_TOKENS), value=1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        whole.pop(name, None)  # they follow from the placeholders
    logits = ensemble(**whole).logits[:, -NEW_TOKENS - 1 : -1]
    torch.testing.assert_close(logits, torch.stack(stepped.logits, 1), atol=1e-4, rtol=1e-4)


# beside a text member


@TWO_FAST
@ENGINES
@PLACES
def test_one_hot_weights_are_each_member(architecture, kind, place):
    ensemble, (model, processor), (text_model, tokenizer) = with_text_member(architecture, kind, place)
    images, texts = images_of(architecture, 1, 2), texts_of(architecture)
    inputs = ensemble.processor(images=images, text=texts)
    ensemble.set_policy(one_hot(place))
    only_text = kind == "two_tokenizers"
    own = own_inputs(processor, images, texts)
    expected = own_completions(model, processor.tokenizer, own, only_text=only_text)
    assert completions(ensemble, inputs) == expected
    plain = [text.replace(PLACEHOLDERS[architecture], "") for text in texts]
    ensemble.set_policy(one_hot(1 - place))
    found = completions(ensemble, inputs)
    assert found == completions(ensemble, ensemble.tokenizer(plain, return_tensors="pt", padding=True))
    if not only_text:
        own = tokenizer(plain, return_tensors="pt", padding=True)
        own = {name: own[name] for name in ("input_ids", "attention_mask")}
        assert found == own_completions(text_model, tokenizer, own, only_text=False)


@pytest.mark.parametrize("architecture", ["qwen2_vl", *slow("llava", "idefics3", "gemma3")])
@ENGINES
@pytest.mark.parametrize("options", [{"num_beams": 2}, *slow({}, {"use_cache": False})], ids=str)
def test_a_batch_is_its_rows_alone(architecture, kind, options):
    ensemble, _, _ = with_text_member(architecture, kind, 0, policy=StaticPolicy([0.9, 0.1]))
    images, text = images_of(architecture, 1, 4), texts_of(architecture)[0]
    # equal texts with different images are different prompts
    together = completions(ensemble, ensemble.processor(images=images, text=[text, text]), **options)
    alone = [completions(ensemble, ensemble.processor(images=[one], text=[text]), **options)[0] for one in images]
    assert together == alone
    if architecture == "qwen2_vl":  # not every random model writes other words
        assert alone[0] != alone[1]
    if architecture != "gemma3":  # its processor takes no rows without images
        mixed = ensemble.processor(images=images[:1], text=[text, "no picture"])
        without = ensemble.tokenizer(["no picture"], return_tensors="pt")
        assert completions(ensemble, mixed, **options) == [alone[0], *completions(ensemble, without, **options)]


@ENGINES
@PLACES
def test_texts_depend_on_images_and_not_on_the_cache(kind, place):
    ensemble, _, _ = with_text_member("qwen2_vl", kind, place, policy=StaticPolicy([0.9, 0.1][:: 1 - 2 * place]))
    text = texts_of("qwen2_vl")[:1]
    found = [ensemble.processor(images=images_of("qwen2_vl", seed), text=text) for seed in (1, 4, 7)]
    texts = [completions(ensemble, inputs)[0] for inputs in found]
    assert len(set(texts)) > 1
    assert [completions(ensemble, inputs, use_cache=False)[0] for inputs in found] == texts


@ENGINES
def test_teacher_forcing_with_a_text_member(kind):
    ensemble, _, _ = with_text_member("qwen2_vl", kind, 0)
    inputs = ensemble.processor(images=images_of("qwen2_vl", 1, 2), text=texts_of("qwen2_vl"))
    stepped = ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True)
    start = inputs["input_ids"].shape[1]
    whole = {**inputs, "input_ids": stepped.sequences, "prompt_length": start}
    whole["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW_TOKENS), value=1)
    expected = torch.stack(stepped.logits, 1)
    for given in (whole, {name: value for name, value in whole.items() if not name.startswith("member_")}):
        torch.testing.assert_close(ensemble(**given).logits[:, -NEW_TOKENS - 1 : -1], expected, atol=1e-4, rtol=1e-4)


@ENGINES
def test_without_members_inputs_the_text_member_reads_no_image(kind):
    """The processor's own output, of which the first member's ids are the prompt."""
    ensemble, (_, processor), _ = with_text_member("llava", kind, 0)
    images, texts = images_of("llava", 1, 2), texts_of("llava")
    assert completions(ensemble, own_inputs(processor, images, texts)) == completions(
        ensemble, ensemble.processor(images=images, text=texts)
    )


@ENGINES
def test_text_in_place_of_images(kind):
    ensemble, (_, processor), _ = with_text_member("qwen2_vl", kind, 0)
    images = images_of("qwen2_vl", 1)
    found = ensemble.processor(images=images, text=texts_of("qwen2_vl")[:1], image_text="[picture]")
    said = ensemble.tokenizer(["The [picture] ran"], return_tensors="pt")
    row = found["member_input_ids"][0, 1][found["member_attention_mask"][0, 1].bool()].tolist()
    assert row == list(ensemble.engine.encode_prompt(said["input_ids"][0].tolist())[1])
    own = own_inputs(processor, images, texts_of("qwen2_vl")[:1])
    assert torch.equal(found["input_ids"], own["input_ids"])
    assert torch.equal(found["pixel_values"], own["pixel_values"])


@ENGINES
@PLACES
def test_chats(kind, place):
    ensemble, (_, processor), (_, tokenizer) = with_text_member("llava", kind, place)
    tokenizer.chat_template = TEMPLATE
    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "What is"}, {"type": "text", "text": "?"}]
    messages = [[{"role": "user", "content": parts}], [{"role": "user", "content": "no picture"}]]
    found = ensemble.processor.apply_chat_template(messages, add_generation_prompt=True)
    own = own_inputs(processor, [picture(1)], ["user: <image>What is?\nassistant:", "user: no picture\nassistant:"])
    mask = found["member_attention_mask"].bool()
    for row, texts in enumerate(["user: What is?\nassistant:", "user: no picture\nassistant:"]):
        seen = found["member_input_ids"][row, place][mask[row, place]].tolist()
        assert seen == own["input_ids"][row][own["attention_mask"][row].bool()].tolist()
        read = found["member_input_ids"][row, 1 - place][mask[row, 1 - place]].tolist()
        assert read == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert len(completions(ensemble, found)) == 2


@ENGINES
@pytest.mark.parametrize("use_cache", [True, False])
def test_looking_ahead_sees_the_images(kind, use_cache):
    """Law: the look-ahead is the mean state over what the member writes by itself."""
    seen: list[torch.Tensor] = []

    class Looks:
        lookahead_tokens = 3

        def __call__(self, state):
            seen.append(state.look_ahead(3)[0])
            return torch.tensor([[1.0, 0.0]]).expand(len(state.text), -1)

    ensemble, (model, processor), _ = with_text_member("qwen2_vl", kind, 0, policy=Looks())
    given = images_of("qwen2_vl", 1, 2), texts_of("qwen2_vl")
    ensemble.generate(**ensemble.processor(*given), max_new_tokens=1, use_cache=use_cache)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_hidden_states": True}
    own = model.generate(**own_inputs(processor, *given), **options, eos_token_id=None)
    expected = torch.stack([states[-1][:, -1] for states in own.hidden_states[1:]]).mean(0)
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)


@ENGINES
def test_each_of_several_images_has_its_text(kind):
    ensemble, _, _ = with_text_member("llava", kind, 0)
    text = 2 * PLACEHOLDERS["llava"] + " dogs"
    inputs = ensemble.processor([[picture(1), picture(2)]], [text], image_text="P")
    read = inputs["member_input_ids"][0, 1][inputs["member_attention_mask"][0, 1].bool()]
    assert ensemble.members[1].tokenizer.decode(read) == "PP dogs"


def test_picked_from_the_prompt():
    """Members that are picked per row see the images of their rows."""

    class ByText:
        observes_members = False

        def __call__(self, state):
            return torch.tensor([[1.0, 0.0] if "ran" in text else [0.0, 1.0] for text in state.text])

    ensemble, _, _ = with_text_member("qwen2_vl", "one_tokenizer", 0, policy=ByText(), select="prompt")
    images, texts = images_of("qwen2_vl", 2, 1), texts_of("qwen2_vl")[::-1]
    together = completions(ensemble, ensemble.processor(images=images, text=texts), num_beams=2)
    alone = [
        completions(ensemble, ensemble.processor(images=[image], text=[text]), num_beams=2)[0]
        for image, text in zip(images, texts, strict=True)
    ]
    assert together == alone


# the processor of logits


@pytest.mark.parametrize("architecture", ["llava", *slow("idefics3", "qwen2_vl")])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_in_the_generate_of_the_member_that_sees(architecture, options):
    ensemble, (model, processor), _ = with_text_member(
        architecture, "one_tokenizer", 0, policy=StaticPolicy([0.2, 0.8])
    )
    inputs = own_inputs(processor, images_of(architecture, 1, 2), texts_of(architecture))
    options = {**options, "max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    expected = ensemble.generate(**inputs, **options)
    logits_processor = EnsembleLogitsProcessor(ensemble)
    assert torch.equal(model.generate(**inputs, **options, logits_processor=[logits_processor]), expected)
    assert not torch.equal(model.generate(**inputs, **options), expected)


def test_in_the_generate_of_the_member_that_sees_with_two_tokenizers():
    ensemble, (model, processor), _ = with_text_member("llava", "two_tokenizers", 0, policy=one_hot(0))
    inputs = own_inputs(processor, images_of("llava", 1, 2), texts_of("llava"))
    silent = [[i] for i, piece in enumerate(ensemble.engine.vocabularies[0].pieces) if piece is None]
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None}
    expected = model.generate(**inputs, **options, bad_words_ids=silent)
    logits_processor = EnsembleLogitsProcessor(ensemble)
    assert torch.equal(model.generate(**inputs, **options, logits_processor=[logits_processor]), expected)
    rereading = EnsembleLogitsProcessor(ensemble, host_rereads=True)
    with pytest.raises(InputError, match="host_rereads"):
        model.generate(**inputs, **options, logits_processor=[rereading])


def test_images_are_encoded_once_per_prompt():
    model, processor = that_sees("llava")
    ensemble = endless([(model, processor), pair("llama", 3, processor.tokenizer)])
    inputs = ensemble.processor(images=images_of("llava", 1, 2), text=texts_of("llava"))
    seen: list[int] = []
    tower = model.model.vision_tower
    with tower.register_forward_hook(lambda _module, _args, output: seen.append(len(output.last_hidden_state))):
        ensemble.generate(**inputs, max_new_tokens=4, num_beams=3)
    assert seen == [2]


def test_rows_of_images():
    model, processor = that_sees("qwen2_vl")
    member = Member(model, processor)
    inputs = own_inputs(processor, images_of("qwen2_vl", 1, 2), texts_of("qwen2_vl"))
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    both = encode_images(member, inputs, ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0), 2)
    assert both.rows == ((0,), (0,), (1,), (1,))
    second = both.select([2, 0]).arguments(ids.shape[1] + 2, 0)
    own = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    for found, row in zip(second["mm_encoder_outputs"]["image"].pooler_output, (1, 0), strict=True):
        assert torch.equal(found, own.pooler_output[row])
    positions = second["position_ids"]
    assert torch.equal(positions[..., -2:] - positions[..., -3:-2], torch.tensor([1, 2]).expand(4, 2, 2))
    later = both.of_row(0).arguments(ids.shape[1] + 2, ids.shape[1] + 1)
    assert later["position_ids"].shape == (4, 1, 1)
    assert "mm_encoder_outputs" not in later


def test_every_layer_of_an_image_encoder_follows_its_images():
    """As of Qwen3-VL, which gives features of several layers per image."""
    first, second = torch.zeros(2, 3), torch.ones(4, 3)
    output = SimpleNamespace(pooler_output=(first, second), deepstack_features=[(first + 5, second + 5)])
    chosen = PromptImages(output, ((0,), (1,)), (9, 9), None, {}).select([1, 0, 1])
    found = chosen.arguments(9, 0)["mm_encoder_outputs"]["image"]
    assert [len(features) for features in found.pooler_output] == [4, 2, 4]
    assert [[int(features[0, 0]) for features in layer] for layer in found.deepstack_features] == [[6, 5, 6]]
