"""Which precision a configuration gets where none is asked for."""

import torch


def default_bf16(fp16: bool, use_cpu: bool) -> bool:
    """Whether bf16 is switched on where `bf16` was left to `None`.

    TRL's own default is True, which transformers refuses on a machine without an accelerator, and which on a CPU makes
    old and new log-probabilities differ.

    Args:
        fp16 (`bool`): whether fp16 was asked for.
        use_cpu (`bool`): whether training is kept on the CPU.
    """
    return not fp16 and not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
