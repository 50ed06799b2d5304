"""What a training saves and publishes: the policy and its model card."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from hf_rlae.cards import Card, CardMember, member_of, write_card
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.files import explained_if_full, write_whole
from hf_rlae.policies import PolicyModel
from hf_rlae.policies.card import policy_card
from hf_rlae.reports import short_names
from hf_rlae.rewards.calls.resolve import RewardCalls
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.run_cards import add_training


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
    reward_calls: RewardCalls
    _card_names: tuple[str | None, str | None, str | list[str] | None] = (None, None, None)

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
        elif self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            merged = copy.deepcopy(policy).merge_and_unload()
            with explained_if_full(folder, "the policy", lambda: sum(value.nbytes for value in merged.parameters())):
                merged.save_pretrained(folder)
        if self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            write_card(folder, self._card(folder).render())
        if self.args.push_to_hub and not _internal_call and not isinstance(policy, PolicyModel):
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: the policy's members, its training, its results, and how to load it."""
        if not self.is_world_process_zero():
            return
        self._card_names = model_name, dataset_name, tags
        folder = str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        write_whole(os.path.join(folder, "README.md"), str(self._card(folder).render()))

    def _card(self, folder: str) -> Card:
        name, dataset_name, tags = self._card_names
        name = name or os.path.basename(os.path.abspath(str(self.args.output_dir)))
        card = policy_card(self.policy.config, self.hub_model_id or name, self._card_members())
        card.title = name
        card.tags = self._tag_names
        add_training(card, self, self.reward_calls.names, f"objective `{self.args.objective}`", dataset_name, tags)
        pictures = sorted(Path(folder, "weighting").glob("weights_over_training.*"))
        card.picture = f"weighting/{pictures[0].name}" if pictures else None
        card.picture_text = "the mean weight of each member over training"
        return card

    def _card_members(self) -> list[CardMember]:
        """The members; those from a folder by a short name."""
        members = self.ensemble.members
        names = short_names(member.name for member in members)
        found = [member_of(member.source or member.name, member.commit or member.revision) for member in members]
        return [one if one.is_on_hub else CardMember(name) for one, name in zip(found, names, strict=True)]
