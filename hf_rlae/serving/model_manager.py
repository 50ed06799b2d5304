"""The one model of the server, in the form in which transformers' serving code asks for models."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerationState, InferenceThread

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import InputError


class EnsembleManager(ModelManager):
    """transformers' `ModelManager` with a loaded ensemble, and no other model.

    Args:
        ensemble (`EnsembleForCausalLM`): what is served.
        name (`str`): as which clients ask for it.

    Attributes:
        thread (`InferenceThread`): on which all requests run, one after the other.
        state (`GenerationState`): without continuous batching, which ensembles cannot do.
    """

    def __init__(self, ensemble: EnsembleForCausalLM, name: str) -> None:
        super().__init__(device="cpu", dtype=None)  # loads nothing
        self.force_model = name
        self.ensemble = ensemble
        self.thread = InferenceThread()
        self.state = GenerationState()
        self._created = int(time.time())

    def check_name(self, name: Any) -> None:
        """Raises `InputError` for a model that is not the ensemble."""
        if name != self.force_model:
            raise InputError(f"there is no model {name!r:.200} here; this server has {self.force_model!r}")

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The ensemble alone; transformers lists what is in the cache of the Hub."""
        return [{"id": self.force_model, "object": "model", "created": self._created, "owned_by": "hf_rlae"}]

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name itself; transformers adds a revision."""
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The ensemble and its tokenizer."""
        self.check_name(model_id_and_revision)
        return self.ensemble, self.ensemble.tokenizer

    async def load_model_streaming(  # type: ignore[override]
        self, model_id_and_revision: str, gguf_file: str | None = None
    ) -> AsyncIterator[str]:
        """What `/load_model` streams, which `transformers chat` waits for: the ensemble is ready."""
        told: dict[str, Any] = {"status": "ready", "model": self.force_model, "cached": True}
        if model_id_and_revision != self.force_model:
            told = {"status": "error", "message": f"there is no such model here; this server has {self.force_model!r}"}
        yield f"data: {json.dumps(told)}\n\n"

    def shutdown(self) -> None:
        """Nothing: the ensemble belongs to the caller."""
