"""What is saved and published of a team of agents: every adapter, each where it can be loaded from, and a card."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import hf_api

from hf_rlae.errors import ConfigError
from hf_rlae.files import write_whole
from hf_rlae.trainers.cory.agents import FIRST, AgentAdapters
from hf_rlae.trainers.cory.checks import check_published_base, is_published

_VERSIONS = ("torch", "transformers", "trl", "peft", "datasets")


class AgentPublisher(Trainer):
    """A mixin for trainers of several adapters: what is saved, or pushed, holds all of them, and a card of its own.

    In a folder or repository the first agent lies at the root and each other one in a folder of its name.

    Source: ours.
    """

    args: Any
    agents: AgentAdapters
    exchange_steps: int
    _name: ClassVar[str]
    _tag_names: ClassVar[list[str]]
    _paper: ClassVar[dict[str, str]]

    def set_base_model_id(self) -> None:
        """Writes `base_model_id` into the adapters' configurations."""
        for config in self.agents.model.peft_config.values():
            if self.args.base_model_id is not None:
                config.base_model_name_or_path = self.args.base_model_id

    def _check_base(self) -> None:
        check_published_base(self.agents.model.peft_config[FIRST].base_model_name_or_path)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._saveable_args():
            super()._save(output_dir, state_dict)
        folder = str(output_dir or self.args.output_dir)
        if self.args.should_save:  # PEFT has written a card about one adapter
            write_whole(os.path.join(folder, "README.md"), cory_card(self._facts()))

    @contextlib.contextmanager
    def _saveable_args(self) -> Iterator[None]:
        """Inside, `args` holds no function: transformers pickles it."""
        template = self.args.observer_template
        self.args.observer_template = self.args.told_template
        try:
            yield
        finally:
            self.args.observer_template = template

    def save_agent(self, agent: str, folder: str | os.PathLike[str]) -> None:
        """Saves one agent alone, to be loaded by `AutoPeftModelForCausalLM.from_pretrained(folder)`.

        Args:
            agent (`str`): its name.
            folder (`str` or `PathLike`): is made if it is not there.

        Raises:
            ConfigError: there is no such agent.
        """
        self._check_agent(agent)
        if not self.args.should_save:
            return
        with tempfile.TemporaryDirectory() as place:
            self.agents.model.save_pretrained(place, selected_adapters=[self.agents.adapters[agent]])
            own = Path(self.agents.folder(agent, place))
            os.makedirs(folder, exist_ok=True)
            for path in own.glob("adapter_*"):
                shutil.copy(path, Path(folder, path.name))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
        name = Path(folder).name
        write_whole(Path(folder, "README.md"), cory_card({**self._facts(), "name": name, "alone": agent}))

    def _check_agent(self, agent: str) -> None:
        if agent not in self.agents.adapters:
            raise ConfigError(f"agent={agent!r}: there are {', '.join(self.agents.names)}")

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
            commit_message, blocking, token, revision, private: as in transformers; one agent alone is always waited
                for.
            agent (`str`, *optional*): its name; it goes to a repository whose name ends in that name, and loads by
                `AutoPeftModelForCausalLM.from_pretrained(repository)`.
            kwargs: for `create_model_card`.

        Raises:
            ConfigError: the base model is a folder, or there is no such agent.
        """
        self._check_base()
        if agent is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self._check_agent(agent)
        if not self.is_world_process_zero():
            return None
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo
        team = self.args.hub_model_id or Path(os.path.abspath(self.args.output_dir)).name
        repository = hf_api().create_repo(f"{team}-{agent}", token=token, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, repository.split("/")[-1])
            self.save_agent(agent, folder)
            card = cory_card({**self._facts(), "name": folder.name, "source": repository, "alone": agent})
            write_whole(folder / "README.md", card)
            return hf_api().upload_folder(
                repo_id=repository,
                folder_path=str(folder),
                commit_message=commit_message,
                token=token,
                revision=revision or self.args.hub_revision,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Stock transformers takes the first agent alone out of the checkpoint."""
        self._check_base()
        uploads = getattr(self, "push_in_progress", None)
        is_busy = uploads is not None and not uploads.is_done() and not self.args.hub_always_push
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END and not is_busy:
            for name in self.agents.names[1:]:
                target = self.agents.folder(name, self.args.output_dir)
                os.makedirs(target, exist_ok=True)
                for path in Path(self.agents.folder(name, checkpoint_folder)).glob("adapter_*"):
                    shutil.copy(path, Path(target, path.name))
        with self._saveable_args():
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(  # type: ignore[override]  # as in TRL
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`: the agents, how they were trained, how each is loaded."""
        if not self.is_world_process_zero():
            return
        facts = self._facts()
        facts["name"] = model_name or facts["name"]
        facts["dataset"] = dataset_name
        facts["tags"] = {*facts["tags"], *([tags] if isinstance(tags, str) else tags or ())}
        os.makedirs(self.args.output_dir, exist_ok=True)
        write_whole(os.path.join(self.args.output_dir, "README.md"), cory_card(facts))

    def _facts(self) -> dict[str, Any]:
        name = os.path.basename(os.path.abspath(str(self.args.output_dir)))
        base = self.agents.model.peft_config[FIRST].base_model_name_or_path or ""
        return {
            "name": name,
            "source": self.hub_model_id or self.args.hub_model_id or name,
            "base": base if is_published(base) else None,
            "agents": self.agents.names,
            "alone": None,
            "trainer": type(self).__name__,
            "exchange_steps": self.exchange_steps,
            "transfer": self.args.knowledge_transfer,
            "observer_reward": self.args.observer_reward,
            "steps": self.state.global_step,
            "tags": {tag for owner in type(self).__mro__ for tag in vars(owner).get("_tag_names", ())},
            "dataset": None,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
            "paper": self._paper,
        }


def cory_card(facts: Mapping[str, Any]) -> str:
    """The model card of a team of agents, or of one of them.

    Args:
        facts: `name`, `source` (a repository), `base` (its name on the Hub, or `None`), `agents` (`list[str]`), `alone`
            (the one agent that is published, or `None`), `trainer`, `exchange_steps`, `transfer`, `observer_reward`,
            `steps`, `tags`, `dataset` (or `None`), `versions` (`dict[str, str]`), `paper` (`dict` with `title`, `id`).

    Returns:
        `str`: Markdown with a YAML head.
    """
    head = ["---", "library_name: peft", "tags:", *(f"- {tag}" for tag in sorted(facts["tags"]))]
    if facts["base"]:
        head += [f"base_model: {facts['base']}"]
    if facts["dataset"] and not os.path.exists(facts["dataset"]):
        head += ["datasets:", f"- {facts['dataset']}"]
    head += ["pipeline_tag: text-generation", "---", ""]
    exchange = f"every {facts['exchange_steps']} updates" if facts["exchange_steps"] else "never"
    transfer = "had read the answers before its own" if facts["transfer"] else "answered without reading another answer"
    versions = "\n".join(f"- {name}: {version}" for name, version in facts["versions"].items())
    return (
        "\n".join(head)
        + f"""# {facts["name"]}

{_what(facts)} by reinforcement learning with `{facts["trainer"]}` of `hf_rlae` ({facts["steps"]} updates). Together
{len(facts["agents"])} agents answered every prompt: a pioneer first, then observers, each of whom {transfer}. Roles
were exchanged: {exchange}. Rewards: `{facts["observer_reward"]}`. The base model was not trained.

## Use

```python
{_loading(facts)}
```

## Versions

{versions}

## Paper

{facts["paper"]["title"]}, arXiv {facts["paper"]["id"]}.
"""
    )


def _what(facts: Mapping[str, Any]) -> str:
    base = f"`{facts['base']}`" if facts["base"] else "one base model"
    if facts["alone"]:
        return f"The LoRA adapter `{facts['alone']}` on {base}, trained"
    listed = ", ".join(f"`{name}`" for name in facts["agents"])
    return f"LoRA adapters on {base}, one an agent ({listed}), trained"


def _loading(facts: Mapping[str, Any]) -> str:
    first = f'first = AutoPeftModelForCausalLM.from_pretrained("{facts["source"]}")'
    if facts["alone"]:
        return f"from peft import AutoPeftModelForCausalLM\n\n{first.replace('first', 'model', 1)}"
    base = facts["base"] or "BASE_MODEL"
    others = [
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        f'model = PeftModel.from_pretrained(base, "{facts["source"]}", subfolder="{name}")  # {name}'
        for name in facts["agents"][1:]
    ]
    imports = "from peft import AutoPeftModelForCausalLM, PeftModel\nfrom transformers import AutoModelForCausalLM"
    return "\n\n".join([imports, f"{first}  # {facts['agents'][0]}", *others])
