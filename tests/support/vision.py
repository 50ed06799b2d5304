"""Tiny random models of images and text with their processors, and images, all made in memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SiglipVisionConfig,
)

from hf_rlae import EnsembleForCausalLM
from tests.support.ensembles import endless
from tests.support.models import enlarge, pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

SEEING = ("llava", "idefics3", "qwen2_vl", "gemma3")
"""Architectures: features of fixed number; images by row; grids and 3-D positions; attention both ways in images."""

PLACEHOLDERS = {
    "llava": "<image>",
    "idefics3": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
}
"""What stands for an image in a text."""

_SPECIALS = {
    "llava": ["<image>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"],
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
}

NEW_TOKENS = 6
"""Tokens per completion."""

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""A chat template for contents that are strings or lists of parts; `IMAGE` is to be replaced by the placeholder."""

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def picture(seed: int, height: int = 8, width: int = 8) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def tokenizer_that_sees(architecture: str) -> PreTrainedTokenizerBase:
    """`byte_level_bpe` with the special tokens of an architecture."""
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIALS[architecture]})
    if architecture == "gemma3":
        names = ("boi_token", "image_token", "eoi_token")
        tokenizer._set_model_specific_special_tokens(dict(zip(names, _SPECIALS[architecture], strict=True)))
    return tokenizer


class ImagesOfQwen(Qwen2VLProcessor):
    """A `Qwen2VLProcessor` without videos, whose processor needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def that_sees(architecture: str, seed: int = 0) -> tuple[PreTrainedModel, Any]:
    """A small random model with its processor, in fp32 and eval mode; equal seeds give equal weights."""
    tokenizer = tokenizer_that_sees(architecture)
    config, processor = _MAKERS[architecture](tokenizer)
    processor.chat_template = TEMPLATE.replace("IMAGE", PLACEHOLDERS[architecture])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        enlarge(model)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval(), processor


def _special(tokenizer: Any) -> dict[str, int]:
    return {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=LlamaConfig(**_TEXT, **_special(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, processor


def _idefics3(tokenizer: Any) -> tuple[Any, Any]:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 8}, max_image_size={"longest_edge": 8}, do_image_splitting=False
    )
    config = Idefics3Config(
        vision_config=_TOWER,
        text_config=LlamaConfig(**_TEXT, **_special(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=1,
        tie_word_embeddings=False,
    )
    return config, Idefics3Processor(images, tokenizer, image_seq_len=4)


def _qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    tower = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1}
    config = Qwen2VLConfig(
        vision_config={**tower, "spatial_merge_size": 2, "temporal_patch_size": 2},
        text_config={
            **_TEXT,
            **_special(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return config, ImagesOfQwen(images, tokenizer)


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    images = Gemma3ImageProcessorPil(size={"height": 8, "width": 8}, do_pan_and_scan=False)
    text = Gemma3TextConfig(
        **_TEXT, **_special(tokenizer), head_dim=8, query_pre_attn_scalar=8, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=False,
    )
    return config, Gemma3Processor(images, tokenizer, image_seq_length=4)


_MAKERS = {"llava": _llava, "idefics3": _idefics3, "qwen2_vl": _qwen2_vl, "gemma3": _gemma3}


def images_of(architecture: str, *seeds: int) -> list[Any]:
    """One picture per prompt, of different shapes, in the form that the architecture's processor takes."""
    shapes = [(16, 8), (8, 16), (8, 8)]
    pictures = [picture(seed, *shapes[seed % 3]) for seed in seeds]
    return [[one] for one in pictures] if architecture == "gemma3" else pictures


def texts_of(architecture: str) -> list[str]:
    place = PLACEHOLDERS[architecture]
    return [f"The {place} ran", f"Once upon a time, {place} there was"]


def own_inputs(processor: Any, images: Any, texts: list[str]) -> Any:
    return processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")


def with_text_member(architecture: str, kind: str, place: int, **options: Any) -> Any:
    """An ensemble of a member that sees, at `place`, and a text model; and both pairs."""
    seeing = that_sees(architecture)
    tokenizer = seeing[1].tokenizer if kind == "one_tokenizer" else copy.deepcopy(sentencepiece_bpe())
    text = pair("llama", 3, tokenizer, max_position_embeddings=512)
    members = [seeing, text] if place == 0 else [text, seeing]
    return endless(members, **options), seeing, text


def completions(ensemble: EnsembleForCausalLM, inputs: Any, **options: Any) -> list[bytes]:
    """The bytes of the completions of a call."""
    ids = ensemble.generate(**inputs, **{"max_new_tokens": NEW_TOKENS, **options})[:, inputs["input_ids"].shape[1] :]
    return [b"".join(ensemble.pieces[i] or b"" for i in row) for row in ids.tolist()]
