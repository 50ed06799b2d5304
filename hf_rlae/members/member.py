"""One member of an ensemble: a causal language model with its tokenizer, checked at construction."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from numbers import Integral
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hf_rlae.errors import ConfigError, MemberError, TokenizerError
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.hub_revisions import commit_of, resolved
from hf_rlae.members.images import encoder_arguments, image_ids_of
from hf_rlae.members.model_files import load_model, load_tokenizer, readable, tokenizer_failures, try_tokenizer
from hf_rlae.members.recurrence import Recurrence, find_recurrence
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary import are_token_ids, token_ids

logger = logging.getLogger(__name__)

TOKENIZER_OPTIONS = ("trust_remote_code", "token", "cache_dir", "local_files_only", "force_download")
"""Options of the model's loading that hold for its tokenizer, too."""


class Member(SharedInCopies):
    """A frozen causal language model and its tokenizer, as one member of an ensemble.

    `requires_grad`, the training mode and the generation config of the model do not change.

    Args:
        model (`PreTrainedModel` or `PeftModel`): any decoder-only model for causal language modelling, or for images
            and text (`AutoModelForImageTextToText`).
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): the tokenizer that the model was trained with; of a
            member that sees images, its processor.
        name (`str`, *optional*): the name in messages and tables; defaults to the model's path or class.
        revision (`str`, *optional*): the commit, branch or tag that the model was loaded from, for saving.
        adapter_name (`str`, *optional*): the adapter that this member uses, of a PEFT model or of a model with
            `add_adapter`. Several members may share one base model, with one adapter each: each has its own modules and
            shares the weights, so that the model itself, its active adapter and its other users are not disturbed.
            `None` = the adapter that is active when the member is run.
        end_token_ids (`Sequence[int]`, *optional*): the ids that end a text. `None` uses the end ids of the generation
            config, the config and the tokenizer that are special tokens. An end id that is ordinary text counts only if
            it is given here.
        source (`str`, *optional*): the folder or Hub id to load the same model from; defaults to the model's path if
            the model has no adapters.

    Attributes:
        commit (`str` or `None`): the commit of the repository that the model was loaded from, if that is known.
        base_commit (`str` or `None`): if the files are an adapter's, the same of the repository of its base model.
        vocab_size (`int`): width of the model's logits, V_m.
        processor (`ProcessorMixin` or `None`): the processor of a member that sees.
        image_ids (`frozenset[int]`): the ids that stand for images in prompts; empty for text models.
        context_length (`int` or `None`): the maximum number of tokens of the model; `None` for recurrent models and
            models in which every layer has a sliding window.
        is_recurrent (`bool`): whether the model has a recurrent state, which cannot be cropped.
        recurrence (`Recurrence`): how a recurrent model can be run.
        is_remote (`bool`): whether the model is in another process; see [`RemoteMember`].

    Raises:
        MemberError: an encoder-decoder model, an object that is not a causal language model, a recurrent model that
            does not return its state, parameters that are not finite, or a processor for a model that cannot see.
        TokenizerError: no tokenizer, one that fails, or one with more tokens than the model, which belongs to another.
        ConfigError: an unknown adapter or end ids outside the vocabulary.
    """

    is_remote = False

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        *,
        name: str | None = None,
        revision: str | None = None,
        adapter_name: str | None = None,
        end_token_ids: Sequence[int] | None = None,
        source: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise MemberError(
                f"a member must be a transformers model for causal language modelling, got {type(model).__name__}; "
                "load it with `AutoModelForCausalLM.from_pretrained(...)`"
            )
        self.processor = tokenizer if isinstance(tokenizer, ProcessorMixin) else None
        if isinstance(tokenizer, ProcessorMixin):
            tokenizer = cast(PreTrainedTokenizerBase, getattr(tokenizer, "tokenizer", None))
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TokenizerError(
                f"a member needs a tokenizer of transformers, got {type(tokenizer).__name__}; load it with "
                "`AutoTokenizer.from_pretrained(...)`"
            )
        # what `torch.compile(model)` returns
        self.compiler: Callable[..., Any] | None = getattr(model, "dynamo_ctx", None)
        self.compiled_decoder: Any = None
        wrapper: Any = model if self.compiler is None else model._orig_mod
        _check_adapter(wrapper, adapter_name, name)
        if adapter_name is not None:
            wrapper = _with_adapter(wrapper, adapter_name)
        self.wrapper = wrapper
        # transformers sets `peft_config` on plain models too: it does not mean PeftModel
        base: Any = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
        self.model: PreTrainedModel = base
        self.tokenizer = tokenizer
        self.config = self.model.config.get_text_config(decoder=True)
        path = getattr(self.model, "name_or_path", "") or getattr(self.model.config, "_name_or_path", "")
        self.name = name or path or type(self.model).__name__
        has_adapters = wrapper is not base or getattr(base, "_hf_peft_config_loaded", False)
        self.source = source or (None if has_adapters else path) or None
        self.revision = revision
        self.commit = commit_of(revision)
        self.base_commit: str | None = None
        if self.commit is None and self.source and not os.path.isdir(self.source) and is_repo_id(self.source):
            # transformers does not say from which commit it loaded a model; it was the newest in the cache
            self.commit = commit_of(resolved(self.source, revision, {"local_files_only": True}))
        self.adapter_name = adapter_name
        self._check_architecture()
        head = self.model.get_output_embeddings()
        self.vocab_size: int = int(head.weight.shape[0]) if _is_linear(head) else int(self.config.vocab_size)
        self._check_tokenizer()
        self.image_ids = image_ids_of(self.model, tokenizer)
        self._check_sight()
        self._check_parameters()
        self.has_given_ends = end_token_ids is not None
        self.end_ids, self.declared_text_end_ids = self._find_end_ids(end_token_ids)
        self.context_length = context_length_of(self.config)
        self.is_recurrent = bool(getattr(self.model, "_is_stateful", False))
        self.recurrence = self._find_recurrence() if self.is_recurrent else Recurrence()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but what compiles the member, as in `nn.Module`."""
        return {**vars(self), "compiler": None, "compiled_decoder": None}

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        what = f"{type(self.model).__name__}, {size:,} parameters, {len(self.tokenizer):,} tokens"
        return f"Member({str(self.name)!r}, {what}, {self.device})"

    @classmethod
    def load(
        cls,
        source: str,
        *,
        dtype: Any = "auto",
        device_map: Any = None,
        revision: str | None = None,
        base_revision: str | None = None,
        vocabulary_hash: str | None = None,
        adapter_name: str | None = None,
        end_token_ids: Sequence[int] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        check_files: bool = True,
        sees: bool | None = None,
        **model_kwargs: Any,
    ) -> Member:
        """Loads a model and its tokenizer from a folder or the Hub.

        Args:
            source (`str`): a folder, or an id on the Hub, of a model or of an adapter; an adapter's base model is that
                of its `adapter_config.json`.
            dtype, device_map, revision, model_kwargs: passed to `AutoModelForCausalLM.from_pretrained`.
            base_revision (`str`, *optional*): the revision of an adapter's base model; defaults to that of its
                `adapter_config.json`.
            vocabulary_hash (`str`, *optional*): what `hf_rlae.vocabulary.vocabulary_hash` gives for the tokenizer that
                is expected.
            adapter_name, end_token_ids: see the class. In a folder of several adapters, one in a folder of its own has
                the name of that folder.
            tokenizer_kwargs (`dict`, *optional*): passed to `AutoTokenizer.from_pretrained`, beside
                `trust_remote_code` and the options of the Hub in `model_kwargs`.
            check_files (`bool`, defaults to `True`): whether to refuse a config that declares more than the files and
                the free memory can hold, before anything is allocated.
            sees (`bool`, *optional*): `True` loads the model with `AutoModelForImageTextToText` and its processor, so
                that the member sees images; `False` uses it for text alone. `None` is `True` for models of images and
                text that are no `AutoModelForCausalLM`.

        Raises:
            MemberError: files that are missing, damaged or too large, or that do not hold every tensor of the model.
            TokenizerError, ConfigError: see the class.
        """
        with readable(source, f"member {source}"):
            revision = resolved(source, revision, model_kwargs)
        options = dict(model_kwargs, dtype=dtype, revision=revision, base_revision=base_revision, sees=sees)
        if device_map is not None:
            options["device_map"] = device_map
        shared = {name: model_kwargs[name] for name in TOKENIZER_OPTIONS if name in model_kwargs}
        shared.update(revision=revision, base_revision=base_revision, expected_hash=vocabulary_hash, sees=sees)
        # first, because a tokenizer that cannot be used is refused before weights are downloaded
        tokenizer = load_tokenizer(source, **{**shared, **(tokenizer_kwargs or {})})
        model, base_revision = load_model(source, adapter_name=adapter_name, check_files=check_files, **options)
        model.eval()
        member = cls(
            model,
            tokenizer,
            name=str(source),
            revision=revision,
            adapter_name=adapter_name,
            end_token_ids=end_token_ids,
            source=str(source),
        )
        member.base_commit = commit_of(base_revision)
        return member

    def prepare(self) -> None:
        """Called before the model runs; a [`LazyMember`] loads its weights."""

    def compile(self, **options: Any) -> None:
        """Lets the member's steps run compiled, on every device; see docs/fast_members.md.

        Args:
            options: the arguments of `torch.compile`, such as `mode="reduce-overhead"`.

        Raises:
            ConfigError: the member runs in another process.
        """
        if self.is_remote:
            raise ConfigError(
                f"member {self.name} runs in another process, where it cannot be compiled; compile the members of this "
                "process, or load it without placement='ray'"
            )
        self.compiler, self.compiled_decoder = partial(torch.compile, **options), None

    @property
    def is_compiled(self) -> bool:
        """Whether the user has compiled the model, or the member; its caches are then static."""
        return self.compiler is not None or self.is_compiled_in_place

    @property
    def is_compiled_in_place(self) -> bool:
        """Whether the model itself was compiled, by `model.compile()` or by a compiled `model.forward`."""
        forward = vars(self.model).get("forward")
        return self.model._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")

    def as_it_was(self) -> AbstractContextManager[Any]:
        """Inside, a model that was compiled in place runs without being compiled."""
        return torch.compiler.set_stance("force_eager") if self.is_compiled_in_place else nullcontext()

    def move(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Applies a function that moves or casts tensors, as `torch.nn.Module._apply` does."""
        self.wrapper._apply(fn)

    @property
    def sees(self) -> bool:
        """Whether the member has a processor for images."""
        return self.processor is not None

    @property
    def device(self) -> torch.device:
        """The device of the model's input ids."""
        embeddings = self.model.get_input_embeddings()
        parameter = next(embeddings.parameters(), None) if embeddings is not None else None
        return parameter.device if parameter is not None else self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters."""
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden states (the input of the language-model head), H_m."""
        head: Any = self.model.get_output_embeddings()
        width = getattr(head, "in_features", None)
        if width is None and _is_linear(head):
            width = head.weight.shape[1]
        return int(self.config.hidden_size if width is None else width)

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The model's own generation config."""
        return getattr(self.model, "generation_config", None)

    @property
    def has_device_map(self) -> bool:
        """Whether accelerate has placed the parts of the model, so that it must not be moved."""
        return getattr(self.model, "hf_device_map", None) is not None

    def warn_of_outgrown_context(self) -> None:
        """Logs a warning that a text is longer than the member's context."""
        logger.warning(
            "the text has outgrown the context of member %s (%d tokens); the member drops out and the others continue",
            self.name,
            self.context_length,
        )

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Prepares the model for trial forward passes: eval mode, no gradients."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad(), self.as_it_was():
                yield
        finally:
            for module in training:
                module.training = True

    def _check_architecture(self) -> None:
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise MemberError(
                f"member {self.name} is an encoder-decoder model ({type(self.model).__name__}); members must be "
                "decoder-only causal language models (`AutoModelForCausalLM`)"
            )
        can_generate = getattr(self.model, "can_generate", lambda: False)
        if not can_generate() or self.model.get_output_embeddings() is None:
            raise MemberError(
                f"member {self.name} ({type(self.model).__name__}) has no language-model head; load it with "
                "`AutoModelForCausalLM`, not `AutoModel`"
            )

    def _check_sight(self) -> None:
        """Raises `MemberError` for a processor of a model that does not read encoded images at its placeholders."""
        if self.processor is None:
            return
        takes = "mm_encoder_outputs" in inspect.signature(type(self.model).forward).parameters
        if not self.image_ids or not takes or "pixel_values" not in encoder_arguments(self.model):
            raise MemberError(
                f"member {self.name} ({type(self.model).__name__}) cannot see: members that see have placeholders for "
                "images in their prompts (`config.image_token_id`), and a `forward` that takes `mm_encoder_outputs`. "
                "Pass its tokenizer instead of its processor (or sees=False) to use it for text alone"
            )

    def _check_tokenizer(self) -> None:
        with tokenizer_failures(f"member {self.name}"):
            try_tokenizer(self.tokenizer)
        highest = max(self.tokenizer.get_vocab().values(), default=-1)
        if highest >= self.vocab_size:
            raise TokenizerError(
                f"the tokenizer of member {self.name} has ids up to {highest}, but its model has only "
                f"{self.vocab_size} ids: the tokenizer belongs to another model. Pass the tokenizer that the model was "
                "trained with, or resize the model's embeddings"
            )

    def _check_parameters(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.is_meta and not self.has_device_map:  # with a device map, accelerate loads them when needed
                raise MemberError(
                    f"member {self.name} has no data in {name}, which is on the meta device; load the model with "
                    "`from_pretrained`, or fill its parameters first"
                )
            if parameter.is_complex():
                raise MemberError(f"member {self.name} has complex numbers in {name}; its files are damaged")
            if (
                parameter.is_floating_point()
                and not parameter.is_meta
                and parameter.element_size() > 1
                and not _is_finite(parameter.detach())
            ):
                raise MemberError(
                    f"member {self.name} has NaN or infinite values in {name}; its files are damaged or its "
                    "training diverged. Load another checkpoint"
                )

    def _find_recurrence(self) -> Recurrence:
        with self.tried():
            found = find_recurrence(self.model, self.device, self.vocab_size)
        if not found.returns_state:
            raise MemberError(
                f"member {self.name} ({type(self.model).__name__}) keeps its recurrent state inside the model and does "
                "not return it, so the states of two texts would mix; use a model that returns its state or its "
                "key-value cache"
            )
        return found

    def _find_end_ids(self, given: Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if given is not None:
            if isinstance(given, str) or any(isinstance(i, bool) or not isinstance(i, Integral) for i in given):
                raise ConfigError(f"end_token_ids of member {self.name} must be a list of ids, got {given!r}")
            outside = [i for i in given if not 0 <= i < self.vocab_size]
            if outside:
                raise ConfigError(
                    f"end_token_ids of member {self.name} has {outside}, outside its {self.vocab_size} ids; give ids "
                    "of the member's own tokenizer"
                )
            return tuple(sorted(set(given))), ()
        declared: set[int] = set()
        for holder in (self.generation_config, self.model.config, self.tokenizer):
            for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
                value = getattr(holder, name, None)
                if not are_token_ids(value):
                    raise MemberError(
                        f"member {self.name} has {name}={value!r} in its {type(holder).__name__}, which is no id; its "
                        "files are damaged. Set the id, or load another checkpoint"
                    )
            declared.update(token_ids(getattr(holder, "eos_token_id", None)))
        special = set(self.tokenizer.all_special_ids)
        special.update(i for i, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special)
        inside = {i for i in declared if 0 <= i < self.vocab_size}
        unnamed = {i for i in inside if not self.tokenizer.convert_ids_to_tokens(i)}
        return tuple(sorted((inside & special) | unnamed)), tuple(sorted(inside - special - unnamed))


def _is_linear(head: Any) -> bool:
    weight = getattr(head, "weight", None)  # in quantised heads this is a method or a packed tensor
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return False
    return getattr(head, "out_features", None) in (None, weight.shape[0])


def _check_adapter(wrapper: Any, adapter: str | None, name: str | None) -> None:
    known = getattr(wrapper, "peft_config", None) or {}
    if adapter is not None and adapter not in known:
        raise ConfigError(
            f"adapter_name={adapter!r} is not an adapter of member {name or type(wrapper).__name__}; give one of "
            f"{list(known)}, or None for the active adapter"
        )
    virtual = [key for key, config in known.items() if getattr(config, "is_prompt_learning", False)]
    if adapter in virtual or (adapter is None and virtual):
        raise MemberError(
            f"adapter {virtual[0]!r} of member {name or type(wrapper).__name__} adds virtual tokens to the prompt, "
            "which an ensemble cannot do; use an adapter of the weights, such as LoRA"
        )


def _with_adapter(wrapper: Any, adapter: str) -> Any:
    """A copy of a model's modules, in which one adapter is always active; all tensors and configs are shared."""
    shared = [*wrapper.parameters(), *wrapper.buffers()]
    for module in wrapper.modules():
        shared += [getattr(module, name) for name in ("config", "generation_config") if hasattr(module, name)]
    own = copy.deepcopy(wrapper, {id(entry): entry for entry in shared})
    for layer, original in zip(own.modules(), wrapper.modules(), strict=True):
        if hasattr(layer, "_active_adapter"):
            layer._active_adapter = [adapter]
        # such as TRL's `add_fused_lm_head`: a copy of the function would still call the original model
        for name in [name for name, value in vars(original).items() if _closes_over(value, original)]:
            delattr(layer, name)
    return own


def _closes_over(function: Any, module: Any) -> bool:
    """Whether a function has a method of a module in its closure."""
    for cell in getattr(getattr(function, "__func__", None), "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            if getattr(cell.cell_contents, "__self__", None) is module:
                return True
    return False


def context_length_of(config: Any) -> int | None:
    """The maximum number of tokens of a language model; `None` for recurrent models and models of sliding windows.

    Args:
        config (`PreTrainedConfig`): of its text model.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window and (kinds == {"sliding_attention"} or (not kinds and getattr(config, "use_sliding_window", True))):
        return None
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(length) if length and getattr(config, "model_type", "") not in ("rwkv", "mamba", "mamba2") else None


def _is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes are found without another tensor of that size."""
    if values.numel() == 0:
        return True
    try:
        extremes = torch.aminmax(values)
    except NotImplementedError:  # quantised kinds of tensors, such as torchao's
        return True
    return all(math.isfinite(value) for value in torch.stack(extremes).tolist())
