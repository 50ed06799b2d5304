"""What a training saves and publishes: the policy and its model card."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.files import explained_if_full, write_whole
from hf_rlae.policies import PolicyModel
from hf_rlae.reports import short_names
from hf_rlae.trainers.model_cards import all_tags, is_hub_id, model_card
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig


class PolicyPublisher(Trainer):
    """A mixin for trainers of policies: what is saved at the end or pushed is a whole policy with its own model card.

    Checkpoints keep a LoRA adapter as it is. Elsewhere it is merged, so that `PolicyModel.from_pretrained` loads the
    result.

    Source: ours.

    Raises:
        ConfigError: a LoRA adapter with a `hub_strategy` that uploads checkpoints during training.
    """

    args: RLAEConfig
    ensemble: EnsembleForCausalLM
    policy: Any
    _tag_names: Sequence[str]
    _paper: Mapping[str, str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        strategy = self.args.hub_strategy
        if self.args.push_to_hub and strategy != HubStrategy.END and not isinstance(self.policy, PolicyModel):
            raise ConfigError(
                f"hub_strategy={HubStrategy(strategy).value!r} with peft_config uploads adapters, which "
                "`PolicyModel.from_pretrained` cannot load; give hub_strategy='end', which uploads the merged policy"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy for `PolicyModel.from_pretrained`; a LoRA adapter is merged, except in checkpoints."""
        policy = self.policy
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint or isinstance(policy, PolicyModel):
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            merged = copy.deepcopy(policy).merge_and_unload()
            with explained_if_full(folder, "the policy", lambda: sum(value.nbytes for value in merged.parameters())):
                merged.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: the policy's members, its training, and how to load it."""
        if not self.is_world_process_zero():
            return
        folder = os.path.abspath(str(self.args.output_dir))
        name = model_name or os.path.basename(folder)
        members = [str(member.name) for member in self.ensemble.members]
        on_hub = [member for member in members if "/" in member and is_hub_id(member)]
        data = {"library_name": "hf_rlae", "base_model": on_hub or None, "tags": all_tags(self._tag_names, tags)}
        shown = [
            member if member in on_hub else short for member, short in zip(members, short_names(members), strict=True)
        ]
        card = model_card(data, name, self._card_body(shown, name), self._paper, dataset_name)
        os.makedirs(folder, exist_ok=True)
        write_whole(os.path.join(folder, "README.md"), card)

    def _card_body(self, members: list[str], name: str) -> str:
        config = self.policy.config
        span = config.span_length
        unit = "the whole text, from the prompt" if span is None else f"each span of {span} tokens"
        setting = 'select="prompt"' if span is None else f"span_length={span}"
        listed = "\n".join(f"{number}. `{member}`" for number, member in enumerate(members, 1))
        return f"""
A policy for an ensemble of language models that decode one completion together: it gives every member a weight for
{unit}. It was trained by reinforcement learning with `RLAETrainer` of `hf_rlae`
(objective `{self.args.objective}`, {self.state.global_step} updates). The members were not trained.

It observes `{config.observation}` and has an actor of kind `{config.actor}`. It works with these members, in this
order:

{listed}

## Use

```python
from hf_rlae import EnsembleForCausalLM, PolicyModel

policy = PolicyModel.from_pretrained("{self.hub_model_id or name}")
ensemble = EnsembleForCausalLM.from_members({members!r}, policy=policy, {setting})
inputs = ensemble.tokenizer(["..."], return_tensors="pt")
ids = ensemble.generate(**inputs, max_new_tokens=64)
```
"""
