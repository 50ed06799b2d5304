"""Members of a chosen size, with real tokenizers, that know what they expect.

Random weights expect every token alike; readings then behave as they never do (nearly every token may go on,
so that members seldom read). Real members of this size with these tokenizers are not at hand, so small ones
are trained on the spot, for a minute or two, on so little real text that they know some of it by heart. Their
distributions are about as peaked as those of good models: see the entropy that `decode` prints.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
"""Four layers, 256 wide."""

LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""The shape of a model with about a billion parameters."""

ROWS, COLUMNS = 16, 64


def trained_member(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    steps: int,
    shape: dict[str, int],
    vocab_size: int | None = None,
    device: str = "cpu",
    learning_rate: float = 3e-3,
    report: Callable[[str], None] | None = None,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> LlamaForCausalLM:
    """A Llama model trained on a text for some steps.

    Tokens that the text never has share one row of the head, so that the full softmax is trained at the cost
    of the text's own vocabulary.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), text (`str`): what is learned.
        steps (`int`): of `rows` rows with `columns` tokens each.
        shape (`dict`): fields of `LlamaConfig`.
        vocab_size (`int`, *optional*): width of the head, where it is to be padded.
        device (`str`): where to train.
        learning_rate (`float`): at its highest.
        report (callable, *optional*): called with a line of progress.
        rows (`int`), columns (`int`): the shape of a batch.
    """
    size = vocab_size or len(tokenizer)
    used, ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"]).unique(return_inverse=True)
    ids = ids.to(device)
    torch.manual_seed(0)
    small = LlamaForCausalLM(_config(len(used) + 1, shape)).to(device).train()
    optimizer = torch.optim.AdamW(small.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        progress = (step + 1) / steps
        rate = learning_rate * min(1.0, 10 * progress) * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(0, len(ids) - columns - 1, (rows,), generator=generator).to(device)
        batch = ids[starts[:, None] + torch.arange(columns + 1, device=device)]
        logits = small(input_ids=batch[:, :-1], use_cache=False).logits.float()
        logits[..., -1] = logits[..., -1] + math.log(size - len(used))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        if report is not None and (step + 1) % 25 == 0:
            report(f"training: step {step + 1} of {steps}, {loss.item():.2f} nats per token")
    return _widened(small, _config(size, shape, tokenizer.eos_token_id), used)


def _config(size: int, shape: dict[str, int], end_id: int | None = None) -> LlamaConfig:
    ends = {"bos_token_id": end_id, "eos_token_id": end_id}
    return LlamaConfig(vocab_size=size, max_position_embeddings=2048, **ends, **shape)


@torch.no_grad()
def _widened(small: LlamaForCausalLM, config: LlamaConfig, used: torch.Tensor) -> LlamaForCausalLM:
    """The model over the whole vocabulary: ids outside `used` get the last row."""
    place = torch.full((config.vocab_size,), len(used))
    place[used] = torch.arange(len(used))
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    state = {
        name: value[place.to(value.device)] if name in tables else value for name, value in small.state_dict().items()
    }
    with torch.device(small.device):
        wide = LlamaForCausalLM(config)
    wide.load_state_dict(state)
    return wide.eval()


def kept_member(
    name: str, tokenizer: PreTrainedTokenizerBase, text: str, steps: int, **options: Any
) -> LlamaForCausalLM:
    """`trained_member` in the small shape, kept in a temporary folder for the next run."""
    folder = Path(tempfile.gettempdir()) / "hf_rlae_benchmarks" / f"{name}-{steps}-{len(text)}"
    if not folder.exists():
        model = trained_member(tokenizer, text, steps, SMALL, **options)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=folder.parent)
        model.save_pretrained(scratch)
        try:
            os.replace(scratch, folder)
        except OSError:  # another run was quicker
            shutil.rmtree(scratch)
    return LlamaForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def sibling(model: LlamaForCausalLM, noise: float = 0.05) -> LlamaForCausalLM:
    """A copy whose weights have normal noise of `noise` times each matrix's standard deviation."""
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    for parameter in twin.parameters():
        if parameter.dim() > 1:
            parameter.add_(torch.randn_like(parameter) * parameter.std() * noise)
    return twin


@torch.no_grad()
def mean_entropy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """The mean entropy of the next-token distributions over a text, in nats."""
    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    logps = model(input_ids=ids).logits.float().log_softmax(-1)
    return float(-(logps.exp() * logps).nan_to_num().sum(-1).mean())
