"""The images of a call: which member sees them, and what the other members read in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_rlae.ensemble.chats.member_chats import member_inputs
from hf_rlae.ensemble.engines.prompts import rows_of
from hf_rlae.errors import InputError, nearest
from hf_rlae.members import GivenImages, Member, encode_images, encoder_arguments
from hf_rlae.members.images import TOKEN_TYPES

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.engines.protocol import Engine
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

IMAGE_INPUTS = (
    "pixel_values",
    "pixel_values_images",
    "pixel_attention_mask",
    "pixel_mask",
    "image_grid_thw",
    "image_sizes",
    "image_position_ids",
    "image_patches",
    "spatial_shapes",
    "mm_encoder_outputs",
)
"""Arguments with images in transformers. A member that sees takes those of its own image encoder."""

_OTHER_MEDIA = {
    "pixel_values_videos": "videos",
    "video_grid_thw": "videos",
    "input_features": "audio",
    "input_values": "audio",
    "feature_attention_mask": "audio",
}


def take_images(model: EnsembleForCausalLM, ids: Any, kwargs: dict[str, Any]) -> GivenImages | None:
    """Takes the images out of the arguments of `generate` or `forward`; `None` if there are none.

    Raises:
        InputError: videos or audio, images that no member or several members see, or inputs of another image encoder.
    """
    for name, kind in _OTHER_MEDIA.items():
        if kwargs.get(name) is not None:
            raise InputError(f"{name}: {kind} are not supported, members see images alone; leave {name} out")
    seeing = [index for index, member in enumerate(model.members) if member.sees]
    known = {*IMAGE_INPUTS, *(encoder_arguments(model.members[seeing[0]].model) if seeing else ())}
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
    types = {name: kwargs.pop(name) for name in TOKEN_TYPES if seeing and name in kwargs}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    index = seeing_member(model.members, next(iter(given)))
    accepted = encoder_arguments(model.members[index].model)
    wrong = [name for name in given if name not in accepted]
    if wrong or "pixel_values" not in given:
        reason = (
            f"{wrong[0]} is not what it takes: {nearest(wrong[0], accepted)}" if wrong else "pixel_values is missing"
        )
        raise InputError(
            f"the images for member {model.members[index].name}: {reason}. Make the inputs with "
            "`ensemble.processor(images=..., text=...)`"
        )
    types = {name: value for name, value in types.items() if value is not None}
    return GivenImages(index, {**given, **types}, len(ids) if isinstance(ids, torch.Tensor) and ids.dim() else 0)


def seeing_member(members: Sequence[Member], name: str) -> int:
    seeing = [index for index, member in enumerate(members) if member.sees]
    if not seeing:
        hints = [member.name for member in members if member.image_ids]
        hint = f"{hints[0]} could: " if hints else ""
        raise InputError(
            f"{name}: no member sees images. {hint}give a member as a pair (model, processor), or by name (a model of "
            f"both Auto classes with `sees=[True, ...]`), or leave {name} out"
        )
    if len(seeing) > 1:
        raise InputError(
            f"{name}: the members {[members[index].name for index in seeing]} see images, and only one may; give the "
            "others with their tokenizers instead of their processors"
        )
    return seeing[0]


def set_images(cache: EnsembleCache, images: GivenImages | None) -> None:
    """Gives a cache the images of a call; `InputError` if it has read the prompts already."""
    if images is None:
        return
    if cache.has_spans:
        raise InputError(
            "pixel_values with past_key_values: the prompts of this cache are read already, and images belong to "
            "prompts; leave the images out, or give the whole text with its images and no past_key_values"
        )
    cache.images, cache.has_images = images, True


def without_images(engine: Engine, index: int, ids: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The members' own prompts: of member `index` as they are, of the others without the ids that stand for images.

    Args:
        engine (`Engine`), index (`int`): the engine, and the member that sees.
        ids, mask (`torch.LongTensor` of shape `(B, L)`): the prompts, in ids of that member; 1 = keep.

    Returns:
        `dict`: `member_input_ids` and `member_attention_mask` `(B, M, L')`.
    """
    seeing = engine.members[index]
    if engine.union is not None and index:
        raise InputError(
            f"pixel_values without member_input_ids: input_ids has tokens of the first member, and {seeing.name} is "
            f"member {index}, with another tokenizer; make the inputs with `ensemble.processor(images=..., text=...)`"
        )
    rows = []
    for row in rows_of(ids, mask):
        text = tuple(i for i in row if i not in seeing.image_ids)
        if not text and len(engine.members) > 1:
            raise InputError("input_ids: a prompt has images alone, and the other members need text; add some")
        own = list(engine.encode_prompt(text)) if text else [row]
        own[index] = row
        rows.append(own)
    return member_inputs(list(zip(*rows, strict=True)))


def prompts_with_images(
    model: EnsembleForCausalLM, cache: EnsembleCache, images: GivenImages, starts: torch.Tensor, is_known: bool
) -> dict[str, torch.Tensor]:
    """`without_images` of the columns before the completions; empty for a single member, which reads all columns."""
    if len(model.members) == 1 and model.union is None:
        return {}
    start = int(starts[0])
    if not is_known or bool((starts != start).any()) or not start:
        raise InputError(
            "pixel_values without member_input_ids: the other members read the prompt without its images, and where it "
            "ends is unknown; pass prompt_length (one for all rows), or make the inputs with "
            "`ensemble.processor(images=..., text=...)`"
        )
    mask = None if cache.mask is None else cache.mask[:, :start]
    return without_images(model.engine, images.index, cache.ids[:, :start], mask)


def show_images(model: EnsembleForCausalLM, cache: EnsembleCache, images: GivenImages) -> None:
    """Encodes the images of a call, for the run of the member that sees."""
    member = model.members[images.index]
    member.prepare()
    ids, mask = cache.call.own_prompts(cache, images.index)
    repeats = len(ids) // images.num_prompts
    cache.call.set_images(images.index, encode_images(member, images.inputs, ids, mask, repeats))
