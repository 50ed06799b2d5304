"""Whether the weights of a checkpoint are those of a model, by names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME


def unlike_tensors(folder: str | Path, model: Any) -> list[str]:
    """The tensors of a checkpoint's weights that a model does not have, or has with another shape.

    `Trainer` would leave them out with a warning, and fail later at the optimizer's state. Only the headers of files
    are read.

    Args:
        folder (`str` or `Path`): of a checkpoint.
        model (`PreTrainedModel` or `PeftModel`): into which they would be loaded.

    Returns:
        `list[str]`: sorted names; empty if the weights are in no single safetensors file.
    """
    is_adapted = isinstance(model, PeftModel)
    path = Path(folder, SAFETENSORS_WEIGHTS_NAME if is_adapted else SAFE_WEIGHTS_NAME)
    if not path.is_file():
        return []
    own = get_peft_model_state_dict(model) if is_adapted else model.state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    with safe_open(path, "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sorted(name for name, shape in saved.items() if shape != shapes.get(name))
