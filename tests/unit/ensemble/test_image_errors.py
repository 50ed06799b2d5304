"""Images that cannot be used raise a typed error that says how to fix it."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, Member, PerplexityPolicy
from hf_rlae.errors import InputError, MemberError, PolicyError, TokenizerError
from tests.support.ensembles import endless
from tests.support.models import pair
from tests.support.refusals import refused
from tests.support.tiers import slow
from tests.support.vision import images_of, own_inputs, picture, texts_of, that_sees, with_text_member


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"pixel_values": torch.zeros(1, 3, 8, 8)}, ["pixel_values", "no member sees"], id="images"),
        pytest.param({"image_grid_thw": torch.ones(1, 3)}, ["image_grid_thw", "no member sees"], id="grids"),
        pytest.param({"pixel_values_videos": torch.zeros(1, 3)}, ["videos", "not supported"], id="videos"),
        pytest.param({"input_features": torch.zeros(1, 3)}, ["audio", "not supported"], id="audio"),
    ],
)
@pytest.mark.parametrize("call", ["generate", "forward"])
def test_images_that_no_member_sees(given, words, call):
    ensemble = EnsembleForCausalLM.from_members([pair("llama")])
    with refused(InputError, *words, ensemble=ensemble):
        getattr(ensemble, call)(input_ids=torch.tensor([[3, 4]]), **given)


def test_a_member_that_could_see_is_named():
    model, processor = that_sees("llava")
    model.name_or_path = "a/llava"
    ensemble = EnsembleForCausalLM.from_members([(model, processor.tokenizer)])
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    with refused(InputError, "a/llava", "(model, processor)", ensemble=ensemble):
        ensemble.generate(**inputs)
    with refused(InputError, "no member sees"):
        ensemble.processor  # noqa: B018


def test_several_members_that_see():
    ensemble = endless([that_sees("llava"), that_sees("llava", 1)])
    inputs = own_inputs(that_sees("llava")[1], images_of("llava", 1), texts_of("llava")[:1])
    with refused(InputError, "only one may", "tokenizers", ensemble=ensemble):
        ensemble.generate(**inputs)


@pytest.mark.parametrize("architecture", ["qwen2_vl", *slow("llava", "idefics3")])
@pytest.mark.parametrize("change", ["one image too many", "one image too few", "other names", "no pixels"])
def test_images_that_do_not_fit(architecture, change):
    model, processor = that_sees(architecture)
    ensemble = EnsembleForCausalLM.from_members([(model, processor)])
    two = own_inputs(processor, images_of(architecture, 1, 2), texts_of(architecture))
    one = own_inputs(processor, images_of(architecture, 1), texts_of(architecture)[:1])
    images = [name for name in two if name not in ("input_ids", "attention_mask", "mm_token_type_ids")]
    if change == "one image too many":
        given, words = {**one, **{name: two[name] for name in images}}, ("image placeholders",)
    elif change == "one image too few":
        given, words = {**two, **{name: one[name] for name in images}}, ("image",)
    elif change == "other names":
        given, words = {**one, "spatial_shapes": torch.ones(1, 2)}, ("spatial_shapes", "ensemble.processor")
    else:
        given = {name: value for name, value in one.items() if name != "pixel_values"}
        given.setdefault("image_sizes", torch.ones(1, 2))
        words = ("ensemble.processor",)
    with refused(InputError, *words, ensemble=None):
        ensemble.generate(**given, max_new_tokens=2)


def test_images_without_the_length_of_the_prompt():
    ensemble, (_, processor), _ = with_text_member("llava", "one_tokenizer", 0)
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    with refused(InputError, "prompt_length", "ensemble.processor", ensemble=ensemble):
        ensemble(**inputs)


def test_images_of_a_second_member_need_its_own_prompt():
    ensemble, (_, processor), _ = with_text_member("llava", "two_tokenizers", 1)
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    inputs["input_ids"] = torch.full_like(inputs["input_ids"], 70)
    with refused(InputError, "member_input_ids", "ensemble.processor", ensemble=ensemble):
        ensemble.generate(**inputs)


def test_images_belong_to_the_first_call_of_a_cache():
    model, processor = that_sees("llava")
    ensemble = endless([(model, processor)])
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    cache = ensemble.new_cache()
    first = ensemble.generate(**inputs, max_new_tokens=4, past_key_values=cache)
    longer = torch.cat([first, torch.tensor([[70, 71]])], 1)
    whole = ensemble.generate(longer, pixel_values=inputs["pixel_values"], max_new_tokens=4)
    with refused(InputError, "past_key_values", "images", ensemble=ensemble):
        ensemble.generate(longer, pixel_values=inputs["pixel_values"], past_key_values=cache, max_new_tokens=4)
    assert torch.equal(ensemble.generate(longer, past_key_values=cache, max_new_tokens=4), whole)


def test_a_policy_that_scores_prompts():
    ensemble, _, _ = with_text_member("llava", "one_tokenizer", 0, policy=PerplexityPolicy())
    inputs = ensemble.processor(images=images_of("llava", 1), text=texts_of("llava")[:1])
    with pytest.raises(PolicyError, match="without its images"):
        ensemble.generate(**inputs, max_new_tokens=2)


def test_a_policy_that_looks_ahead_in_the_generate_of_the_member_that_sees():
    def policy(state):
        return state.look_ahead(2)[0][:, :2].softmax(-1)

    ensemble, (model, processor), _ = with_text_member("llava", "one_tokenizer", 0, policy=policy)
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    with pytest.raises(PolicyError, match="look-ahead would read it again without them"):
        model.generate(**inputs, max_new_tokens=2, logits_processor=[EnsembleLogitsProcessor(ensemble)])


def test_custom_generate_refuses_images():
    model, processor = that_sees("llava")
    ensemble = EnsembleForCausalLM.from_members([(model, processor)])
    inputs = own_inputs(processor, images_of("llava", 1), texts_of("llava")[:1])
    with pytest.raises(InputError, match="EnsembleLogitsProcessor"):
        model.generate(**inputs, custom_generate=ensemble.as_custom_generate(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"text": ["a <image> b"]}, ["'<image>'", "per image"], id="no image"),
        pytest.param({"text": ["a b"], "images": [picture(1)]}, ["'<image>'", "per image"], id="no placeholder"),
        pytest.param({"text": ["a b"], "videos": [picture(1)]}, ["videos", "images alone"], id="videos"),
    ],
)
def test_inputs_that_the_processor_refuses(given, words):
    ensemble, _, _ = with_text_member("llava", "one_tokenizer", 0)
    with refused(InputError, *words, ensemble=ensemble):
        ensemble.processor(**given)


@pytest.mark.parametrize("kind", ["one_tokenizer", "two_tokenizers"])
def test_chats_with_images_need_the_processor(kind):
    ensemble, (_, processor), _ = with_text_member("llava", kind, 0)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(1)}]}]
    with refused(InputError, "ensemble.processor.apply_chat_template", ensemble=ensemble):
        ensemble.tokenizer.apply_chat_template(messages)
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    with refused(InputError, "video", ensemble=ensemble):
        ensemble.processor.apply_chat_template(video)
    processor.chat_template = None
    with refused(TokenizerError, "chat template", ensemble=ensemble):
        ensemble.processor.apply_chat_template(messages)


def test_a_processor_of_a_text_model():
    with refused(MemberError, "cannot see", "tokenizer"):
        Member(pair("llama", tokenizer=that_sees("llava")[1].tokenizer)[0], that_sees("llava")[1])
