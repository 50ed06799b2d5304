"""What is kept and published of a training: the policy and its model card."""

from __future__ import annotations

import copy
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.files import write_whole
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.policies import PolicyModel
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig

_VERSIONS = ("torch", "transformers", "trl", "datasets")


class PolicyPublisher(Trainer):
    """A mixin for trainers of policies: what is saved at the end, or pushed, is a whole policy with a card of its own.

    Checkpoints keep a LoRA adapter as it is; elsewhere it is merged in, so that `PolicyModel.from_pretrained` loads
    what was saved.

    Source: ours.

    Raises:
        ConfigError: a LoRA adapter, and a `hub_strategy` that uploads checkpoints while training goes on.
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
                "`PolicyModel.from_pretrained` cannot load; take hub_strategy='end', which uploads the merged policy"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy, to be loaded by `PolicyModel.from_pretrained`; a LoRA adapter is merged in.

        Checkpoints keep the adapter as it is.
        """
        policy = self.policy
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint or isinstance(policy, PolicyModel):
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            copy.deepcopy(policy).merge_and_unload().save_pretrained(output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: what the policy weighs, how it was trained, how it is loaded."""
        if not self.is_world_process_zero():
            return
        config, folder = self.policy.config, os.path.abspath(str(self.args.output_dir))
        name = model_name or os.path.basename(folder)
        facts = {
            "name": name,
            "source": self.hub_model_id or name,
            "members": [str(member.name) for member in self.ensemble.members],
            "objective": self.args.objective,
            "observation": config.observation,
            "actor": config.actor,
            "span_length": config.span_length,
            "steps": self.state.global_step,
            "tags": {*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())},
            "dataset": dataset_name,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            "paper": self._paper,
        }
        os.makedirs(folder, exist_ok=True)
        write_whole(os.path.join(folder, "README.md"), policy_card(facts))


def policy_card(facts: Mapping[str, Any]) -> str:
    """The model card of a trained policy.

    Args:
        facts: `name`, `source` (what `from_pretrained` takes), `members` (`list[str]`), `objective`, `observation`,
            `actor`, `span_length`, `steps`, `tags`, `dataset` (or `None`), `versions` (`dict[str, str]`), `paper`
            (`dict` with `title` and `id`).

    Returns:
        `str`: Markdown with a YAML head.
    """
    members = [name for name in facts["members"] if "/" in name and is_repo_id(name) and not os.path.exists(name)]
    head = ["---", "library_name: hf_rlae", "tags:", *(f"- {tag}" for tag in sorted(facts["tags"]))]
    if members:
        head += ["base_model:", *(f"- {name}" for name in members)]
    if facts["dataset"] and not os.path.exists(facts["dataset"]):
        head += ["datasets:", f"- {facts['dataset']}"]
    head += ["---", ""]
    names = [name if name in members else os.path.basename(name.rstrip("/")) for name in facts["members"]]
    listed = "\n".join(f"{number}. `{name}`" for number, name in enumerate(names, 1))
    versions = "\n".join(f"- {name}: {version}" for name, version in facts["versions"].items())
    return (
        "\n".join(head)
        + f"""# {facts["name"]}

A policy that weighs language models which decode one text together: it gives every member a weight, anew for every
span of {facts["span_length"]} tokens. It was trained by reinforcement learning with `RLAETrainer` of `hf_rlae`
(objective `{facts["objective"]}`, {facts["steps"]} updates). The members were not trained.

It sees `{facts["observation"]}` and has an actor of kind `{facts["actor"]}`. It works with these members, in this
order:

{listed}

## Use

```python
from hf_rlae import EnsembleForCausalLM, PolicyModel

policy = PolicyModel.from_pretrained("{facts["source"]}")
ensemble = EnsembleForCausalLM.from_members({names!r}, policy=policy, span_length={facts["span_length"]})
inputs = ensemble.tokenizer(["..."], return_tensors="pt")
ids = ensemble.generate(**inputs, max_new_tokens=64)
```

## Versions

{versions}

## Paper

{facts["paper"]["title"]}, arXiv {facts["paper"]["id"]}.
"""
    )
