"""The images of prompts, for a member that sees: encoded once per call, and read together with the prompt."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_rlae.errors import InputError, first_sentence

if TYPE_CHECKING:
    from hf_rlae.members.member import Member

TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Arguments of models that tell the tokens of images from those of text: 1 for an image."""

_OF_IMAGES = re.compile(r"image|img|vision|patch|tile|_col_", re.IGNORECASE)
"""Names of the special tokens that processors write around and for images."""


def image_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that a processor writes for images: the placeholder, and special tokens around it. Empty for text models.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): those of a member.
    """
    placeholder = getattr(model.config, "image_token_id", None)
    if not isinstance(placeholder, int) or not hasattr(model, "get_image_features"):
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    return frozenset([placeholder, *(i for i, token in added if token.special and _OF_IMAGES.search(token.content))])


def encoder_arguments(model: Any) -> list[str]:
    """The names of what a model's image encoder takes, such as `pixel_values`."""
    return [name for name in inspect.signature(model.base_model.get_image_features).parameters if name != "kwargs"]


@dataclass(frozen=True)
class GivenImages:
    """The images of one call.

    Attributes:
        index (`int`): the member that sees them.
        inputs (`dict[str, torch.Tensor]`): what its processor returned beside ids and mask.
        num_prompts (`int`): number of prompts; each may be repeated in several rows.
    """

    index: int
    inputs: dict[str, Any]
    num_prompts: int


@dataclass(frozen=True)
class PromptImages:
    """The encoded images of a batch of prompts, and what else the model needs to read them.

    Attributes:
        output (`ModelOutput`): what the image encoder returned for all images.
        rows (`tuple[tuple[int, ...], ...]`): the images of each row, by their index in `output.pooler_output`.
        lengths (`tuple[int, ...]`): number of prompt tokens in each row.
        positions (`torch.LongTensor` of shape `(P, B, L)`, *optional*): the positions of the prompt's columns, of a
            model that has several per token (such as the height and width of a patch).
        types (`dict[str, torch.LongTensor]`): token types of the prompt's columns, each of shape `(B, L)`.
    """

    output: Any
    rows: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    positions: torch.Tensor | None
    types: Mapping[str, torch.Tensor]

    def arguments(self, total: int, begin: int) -> dict[str, Any]:
        """The arguments of a forward pass over the columns `begin .. total - 1`; images are read from column 0 on."""
        added: dict[str, Any] = {}
        if self.positions is not None:
            more = total - self.positions.shape[-1]
            following = self.positions[..., -1:] + torch.arange(1, max(more, 0) + 1, device=self.positions.device)
            added["position_ids"] = torch.cat([self.positions, following], dim=-1)[..., begin:total]
        for name, types in self.types.items():
            following = types.new_zeros(len(types), max(total - types.shape[1], 0))
            added[name] = torch.cat([types, following], dim=1)[:, begin:total]
        images = [index for row in self.rows for index in row]
        if begin == 0 and images:
            added["mm_encoder_outputs"] = {"image": self._of(images)}
        return added

    def _of(self, images: list[int]) -> Any:
        """The encoder's output for some of the images, in their order."""
        features = self.output.pooler_output
        if images == list(range(len(features))):
            return self.output
        chosen = copy.copy(self.output)
        chosen.pooler_output = _picked(features, images)
        layers = getattr(self.output, "deepstack_features", None)
        if layers is not None:
            chosen.deepstack_features = [_picked(layer, images) for layer in layers]
        return chosen

    def select(self, rows: Sequence[int]) -> PromptImages:
        """The images of the rows `rows`; a row may be there several times."""
        chosen = list(rows)
        return replace(
            self,
            rows=tuple(self.rows[row] for row in chosen),
            lengths=tuple(self.lengths[row] for row in chosen),
            positions=None if self.positions is None else self.positions[:, chosen],
            types={name: types[chosen] for name, types in self.types.items()},
        )

    def of_row(self, row: int) -> PromptImages:
        """The images of a single row, without padding."""
        one = self.select([row])
        length = one.lengths[0]
        return replace(
            one,
            positions=None if one.positions is None else one.positions[..., -length:],
            types={name: types[:, -length:] for name, types in one.types.items()},
        )


def _picked(features: Any, images: list[int]) -> Any:
    return features[images] if isinstance(features, torch.Tensor) else [features[index] for index in images]


@torch.no_grad()
def encode_images(
    member: Member, inputs: Mapping[str, Any], ids: torch.Tensor, mask: torch.Tensor, repeats: int
) -> PromptImages:
    """Encodes the images of prompts, once for all rows that repeat a prompt, as transformers' `generate` does.

    Args:
        member (`Member`): a member that sees.
        inputs (`dict[str, torch.Tensor]`): what its processor returned beside ids and mask.
        ids, mask (`torch.LongTensor` of shape `(B * repeats, L)`): its prompts, padded on the left; 1 = keep.
        repeats (`int`): number of rows per prompt, one after the other.

    Raises:
        InputError: the model cannot encode the images, or they do not fit the placeholders in the prompts.
    """
    model: Any = member.model
    ids, mask = ids[::repeats].to(member.device), mask[::repeats].to(member.device)
    is_image = (ids == model.config.image_token_id) & (mask != 0)
    types = {}
    for name in TOKEN_TYPES:
        if name in inspect.signature(type(model).forward).parameters:
            given = inputs.get(name)
            types[name] = is_image.long() if given is None else _aligned(given.to(ids.device), ids.shape[1])
    moved = {name: _moved(value, member) for name, value in inputs.items() if name not in TOKEN_TYPES}
    try:
        positions = model._prepare_position_ids_for_generation(ids, {**moved, **types, "attention_mask": mask})
        output = model._prepare_multimodal_encoder_kwargs_for_generation(dict(moved))["mm_encoder_outputs"]["image"]
    except Exception as error:  # a model may raise anything
        raise InputError(
            f"the images cannot be read by member {member.name}: {type(error).__name__}: {first_sentence(error)} Make "
            "the inputs with `ensemble.processor(images=..., text=...)`"
        ) from error
    numbers = is_image.sum(1).tolist()
    rows = _images_by_row([len(features) for features in output.pooler_output], numbers, member.name)
    found = PromptImages(output, rows, tuple(mask.sum(1).tolist()), positions if positions.dim() > 2 else None, types)
    return found.select([row for row in range(len(ids)) for _ in range(repeats)]) if repeats > 1 else found


def _moved(value: Any, member: Member) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(member.device, member.dtype if value.is_floating_point() else None)


def _aligned(types: torch.Tensor, width: int) -> torch.Tensor:
    """Token types with the last `width` columns, padded on the left like the prompts."""
    missing = max(width - types.shape[1], 0)
    return torch.nn.functional.pad(types, (missing, 0))[:, -width:]


def _images_by_row(sizes: Sequence[int], numbers: Sequence[int], name: str) -> tuple[tuple[int, ...], ...]:
    """The images of each row: as many as fill its placeholders.

    Args:
        sizes (`Sequence[int]`): number of features per image.
        numbers (`Sequence[int]`): number of placeholders per row.
        name (`str`): the member's, for the message.
    """
    rows: list[tuple[int, ...]] = []
    at = 0
    for number in numbers:
        begin, filled = at, 0
        while filled < number and at < len(sizes):
            filled += sizes[at]
            at += 1
        if filled != number:
            break
        rows.append(tuple(range(begin, at)))
    if len(rows) < len(numbers) or any(sizes[at:]):
        row = min(len(rows), len(numbers) - 1)
        raise InputError(
            f"the images do not fit the prompts of member {name}: the images have {list(sizes)} features, the prompts "
            f"have {list(numbers)} image placeholders (from row {row} on they differ); give the images of all rows in "
            "their order, as `ensemble.processor(images=..., text=...)` does"
        )
    return tuple(rows)
