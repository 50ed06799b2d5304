"""The model card of an adapter that was trained by PPO over tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_rlae.cards import CORY, PPO, Card
from hf_rlae.files import write_whole
from hf_rlae.trainers.durable.private_saves import PrivateSaves
from hf_rlae.trainers.run_cards import ADAPTER_LIMITS, add_training, published_base


class AdapterPublisher(PrivateSaves):
    """A mixin for trainers of one adapter: what is saved or pushed has a model card of this package.

    Source: ours.
    """

    peft_model: Any
    reward_func_names: list[str]
    _name: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # replaces PEFT's card, which tells nothing of the training
            write_whole(Path(output_dir or self.args.output_dir, "README.md"), self._adapter_card())

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: the base model, the training, its results, and how to load it."""
        if self.is_world_process_zero():
            os.makedirs(self.args.output_dir, exist_ok=True)
            card = self._adapter_card(model_name, dataset_name, tags)
            write_whole(os.path.join(self.args.output_dir, "README.md"), card)

    def _adapter_card(
        self, name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> str:
        folder = os.path.basename(os.path.abspath(str(self.args.output_dir)))
        base = published_base(self.peft_model, "default")
        source = json.dumps(self.hub_model_id or self.args.hub_model_id or folder)
        own_tags = {tag for owner in type(self).__mro__ for tag in vars(owner).get("_tag_names", ())}
        own_tags.discard("grpo")  # whose trainer this one is built on
        card = Card(
            title=name or folder,
            description=f"A LoRA adapter on {f'`{base.name}`' if base else 'a base model'}, trained by PPO over tokens "
            "with a value head and a KL penalty to the base model, which was not trained.",
            use=_use(source, base is not None),
            tags=sorted(own_tags),
            library_name="peft",
            base=base,
            limits=[*ADAPTER_LIMITS, "The value head of the training is not part of it; generation does not need it."],
            citations=[PPO, CORY],
        )
        add_training(card, self, self.reward_func_names, self._name, dataset_name, tags)
        return str(card.render())


def _use(source: str, is_base_known: bool) -> str:
    if is_base_known:
        load = f"model = AutoPeftModelForCausalLM.from_pretrained({source})"
        return f"from peft import AutoPeftModelForCausalLM\n\n{load}"
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE_MODEL")\nmodel = PeftModel.from_pretrained(base, {source})'
    )
