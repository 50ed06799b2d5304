"""What a training of several agents saves and publishes: every adapter in its own folder, and a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers.utils.hub import hf_api

from hf_rlae.cards import CORY, PPO, Card, CardMember
from hf_rlae.checks import check_choice
from hf_rlae.files import write_whole
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.hub_revisions import commit_of, resolved
from hf_rlae.trainers.cory.agents import FIRST, AgentAdapters
from hf_rlae.trainers.cory.checks import check_published_base
from hf_rlae.trainers.cory.roles import role_labels
from hf_rlae.trainers.durable.private_saves import PrivateSaves, hide_base
from hf_rlae.trainers.run_cards import ADAPTER_LIMITS, add_training, published_base


class AgentPublisher(PrivateSaves):
    """A mixin for trainers of several adapters: what is saved or pushed has all of them, and its own model card.

    In a folder or repository the first agent is at the root and each other agent in a folder of its name.

    Source: ours.
    """

    args: Any
    agents: AgentAdapters
    exchange_steps: int
    _name: ClassVar[str]
    _tag_names: ClassVar[list[str]]
    reward_func_names: list[str]

    def set_base_model_id(self) -> None:
        """Writes `base_model_id` into the adapters' configurations, and the commit of a base model on the Hub."""
        revision = (getattr(self.args, "model_init_kwargs", None) or {}).get("revision")
        for config in self.agents.model.peft_config.values():
            loaded = config.base_model_name_or_path
            base = self.args.base_model_id or loaded
            config.base_model_name_or_path = base
            if config.revision is None and base and base == loaded and is_hub_id(base):
                config.revision = commit_of(resolved(base, revision, {"local_files_only": True}))

    def _check_base(self) -> None:
        check_published_base(self.agents.model.peft_config[FIRST].base_model_name_or_path)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # replaces PEFT's card, which describes one adapter
            write_whole(Path(output_dir or self.args.output_dir, "README.md"), self._card())

    def save_agent(self, agent: str, folder: str | os.PathLike[str]) -> None:
        """Saves one agent alone, for `AutoPeftModelForCausalLM.from_pretrained(folder)`.

        Args:
            agent (`str`): its name.
            folder (`str` or `PathLike`): created if it does not exist.

        Raises:
            ConfigError: there is no such agent.
        """
        check_choice("agent", agent, self.agents.names)
        if not self.args.should_save:
            return
        with tempfile.TemporaryDirectory() as place:
            self.agents.model.save_pretrained(place, selected_adapters=[self.agents.adapters[agent]])
            os.makedirs(folder, exist_ok=True)
            for path in Path(self.agents.folder(agent, place)).glob("adapter_*"):
                shutil.copy(path, folder)
        hide_base(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
        write_whole(Path(folder, "README.md"), self._card(Path(folder).name, agent))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        agent: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publishes all agents in one repository, or one alone in a repository of its own.

        Args:
            commit_message, blocking, token, revision, private: as in transformers; the upload of one agent alone
                always blocks.
            agent (`str`, *optional*): its name, which the name of its repository ends with. Load it with
                `AutoPeftModelForCausalLM.from_pretrained(repository)`.
            kwargs: for `create_model_card`.

        Raises:
            ConfigError: the base model is a folder, or there is no such agent.
        """
        self._check_base()
        if agent is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        check_choice("agent", agent, self.agents.names)
        if not self.is_world_process_zero():
            return None
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo
        team = self.args.hub_model_id or Path(os.path.abspath(self.args.output_dir)).name
        repository = hf_api().create_repo(f"{team}-{agent}", token=token, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, repository.split("/")[-1])
            self.save_agent(agent, folder)
            write_whole(folder / "README.md", self._card(folder.name, agent, repository))
            return hf_api().upload_folder(
                repo_id=repository,
                folder_path=str(folder),
                commit_message=commit_message,
                token=token,
                revision=revision or self.args.hub_revision,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._check_base()
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: the agents, how they were trained, and how to load each of them."""
        if not self.is_world_process_zero():
            return
        os.makedirs(self.args.output_dir, exist_ok=True)
        card = self._card(model_name, dataset_name=dataset_name, tags=tags)
        write_whole(os.path.join(self.args.output_dir, "README.md"), card)

    def _card(
        self,
        name: str | None = None,
        agent: str | None = None,
        source: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> str:
        """The model card of all agents, or of one that is published alone; `source` is the repository."""
        folder = os.path.basename(os.path.abspath(str(self.args.output_dir)))
        source = source or self.hub_model_id or self.args.hub_model_id or folder
        model = self.agents.model
        base = published_base(model, FIRST)
        own_tags = {tag for owner in type(self).__mro__ for tag in vars(owner).get("_tag_names", ())}
        card = Card(
            title=name or folder,
            description=self._description(agent, base),
            use=_loading(source, base.name if base else None, [agent] if agent else self.agents.names),
            tags=sorted(own_tags),
            library_name="peft",
            base=base,
            limits=[
                *ADAPTER_LIMITS,
                "Each agent answers alone. Agents that were trained as observers also saw answers of other agents; in "
                "that role they need a prompt of the same form.",
            ],
            citations=[CORY, PPO] if "ppo" in own_tags else [CORY],
        )
        add_training(card, self, self.reward_func_names, self._name, dataset_name, tags)
        return str(card.render())

    def _description(self, agent: str | None, base: CardMember | None) -> str:
        names, args = self.agents.names, self.args
        listed = ", ".join(f"`{name}`" for name in names)
        what = f"The LoRA adapter `{agent}`" if agent else f"LoRA adapters, one per agent ({listed}),"
        exchange = f"every {self.exchange_steps} updates" if self.exchange_steps else "never"
        reading = (
            "later ones after reading earlier answers" if args.knowledge_transfer else "without reading another answer"
        )
        roles = ", ".join(role_labels(args.role_names))
        return f"""
{what} on {f"`{base.name}`" if base else "one base model"}. {len(names)} agents were trained together (CORY) and
answered every prompt, {reading}. Their roles: {roles}. Roles were exchanged: {exchange}. Rewards:
`{args.credit}`. The base model was not trained.
"""


def _loading(source: str, base: str | None, agents: Sequence[str]) -> str:
    """Code that loads the agents of a repository, the first from its root and the others from their folders.

    The adapters refer to a base on the Hub (`base`), but not to one that was loaded from a folder.
    """
    blocks = [
        f'base = AutoModelForCausalLM.from_pretrained("{base or "BASE_MODEL"}")\n'
        f'model = PeftModel.from_pretrained(base, "{source}"{place})  # {name}'
        for name, place in zip(agents, ["", *(f', subfolder="{name}"' for name in agents[1:])], strict=True)
    ]
    imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    if base:
        blocks[0] = f'model = AutoPeftModelForCausalLM.from_pretrained("{source}")  # {agents[0]}'
        imports = ["from peft import AutoPeftModelForCausalLM, PeftModel", imports[1]]
        if len(agents) == 1:
            imports = ["from peft import AutoPeftModelForCausalLM"]
    return "\n\n".join(["\n".join(imports), *blocks])
