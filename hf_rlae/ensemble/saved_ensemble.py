"""How an ensemble is built, loaded, saved and published; decoding is in `modeling_ensemble.py`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self, Unpack, cast

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from hf_rlae.ensemble import loading, saving
from hf_rlae.ensemble.card import ensemble_card
from hf_rlae.ensemble.options import BuildOptions, GivenMember, LoadOptions, with_keywords
from hf_rlae.policies import GivenPolicy
from hf_rlae.remote_code import NotRemote


class SavedEnsemble(NotRemote, PreTrainedModel):
    """The part of [`EnsembleForCausalLM`] that reads and writes folders and repositories."""

    @classmethod
    @with_keywords(BuildOptions, loading.BUILD_DEFAULTS)
    def from_members(
        cls, members: Sequence[GivenMember], policy: GivenPolicy | None = None, **settings: Unpack[BuildOptions]
    ) -> Self:
        """Builds an ensemble from folders, Hub ids or models.

        Args:
            members: folders, Hub ids, `(model, tokenizer)` pairs, models or `Member` objects. The tokenizer of a model
                alone is loaded from where `from_pretrained` has loaded the model.
            policy (`Policy`, `str` or `os.PathLike`, *optional*): an object (see the class), a registered name such as
                `"entropy"`, a folder, or a Hub id: `"user/repo"` or `"user/repo@revision"`, of a policy or of an
                ensemble. `None` = uniform weights.
            weights (`Sequence[float]`, *optional*): fixed weights in place of a policy, one per member, such as `[0.7,
                0.3]`; they are divided by their sum.
            policy_revision (`str`, *optional*): the commit, branch or tag of a policy on the Hub.
            dtype (defaults to `"auto"`), device_map, revisions (`list`), member_kwargs (`dict`, or a `list` with one
                `dict` per member), check_files (defaults to `True`): options for loading members that are given by
                name; see [`Member.load`].
            placement (`str` or `list`, *optional*): `"local"` (default), or `"ray"` for members that run in Ray actors;
                see [`RemoteMember`] and docs/scaling.md.
            resources (`dict` or `list[dict | None]`, *optional*): the options of the actors, such as `{"num_gpus": 1}`.
            member_timeout (`float`, defaults to 120): seconds that a step of a remote member may take.
            end_token_ids (`list[list[int] | None]`), adapter_names (`list[str | None]`), sees (`list[bool | None]`):
                one entry per member; see [`Member.load`].
            settings: fields of `EnsembleConfig`, such as `span_length`, `mixing`, `min_weight`.

        Returns:
            `EnsembleForCausalLM`: in eval mode.

        Raises:
            ConfigError: an unknown option, lists of another length than `members`, or weights beside a policy.
        """
        return cast(Self, loading.build(cast(Any, cls), members, policy, **settings))

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Saves config, generation config and policy, and the members or their places.

        A member from the Hub is saved as its id and revision. One in a folder is saved as a relative path, if the
        folder is inside `save_directory`, beside it, or beside a folder that contains it; else only by its name, so
        that no path of this machine is published.

        Args:
            save_directory (`str` or `os.PathLike`): created if it does not exist.
            kwargs: `save_members` (`bool`, defaults to `False`): whether to save members that are not on the Hub in
                `members/`, so that the folder can be loaded anywhere. `push_to_hub` (`bool`) and its options as in
                transformers.

        Raises:
            ConfigError: a policy that cannot be saved, a member that was given as an object and is not saved, or a push
                without members that nobody else has.
        """
        saving.save(cast(Any, self), save_directory, **kwargs)

    def model_card(self, name: str | None = None) -> ModelCard:
        """The model card that `save_pretrained` and `push_to_hub` write, unless there is one of a user.

        Args:
            name (`str`, *optional*): the repository or folder that the card's code loads.
        """
        return ensemble_card(cast(Any, self), cast(Any, self.config), name or "ensemble").render()

    def push_to_hub(self, repo_id: str, *, save_members: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        """Uploads in one commit what `save_pretrained` saves, without anything of this machine.

        Members are named by id and commit; their weights are not uploaded.

        Args:
            repo_id (`str`): the repository; it is created if it does not exist.
            save_members (`bool`, defaults to `False`): whether to upload the members that are not on the Hub, too.
            kwargs: `private`, `token`, `commit_message`, `commit_description`, `revision`, `create_pr`, `tags` and
                `max_shard_size`, as in transformers.

        Returns:
            `huggingface_hub.CommitInfo`: the URL of the commit, a string; `oid` is the commit.

        Raises:
            ConfigError: an unknown option, members that are folders or objects of this machine (without
                `save_members=True`), or a member that the Hub does not have. Nothing is uploaded.
        """
        return saving.push(cast(Any, self), repo_id, save_members, **kwargs)

    @classmethod
    @with_keywords(LoadOptions, loading.LOAD_DEFAULTS)
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Unpack[LoadOptions]
    ) -> Self:
        """Loads an ensemble: its members from where they are, its policy from the folder or repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or an id on the Hub.
            members (`list`, *optional*): members in place of the saved ones, as in `from_members`; `None` for one that
                is kept.
            policy, weights, policy_revision: as in `from_members`, in place of the saved policy.
            config (`EnsembleConfig`, *optional*): in place of the saved one.
            dtype, device_map, member_kwargs, check_files, placement, resources, member_timeout: as in `from_members`.
            allow_outside (`bool`, defaults to `False`): whether members may be folders outside of the ensemble's own.
            max_members (`int`, defaults to 64): the most members to load.
            trust_remote_code (`bool`, defaults to `False`): whether code of the members and the policy may run.
            revision, subfolder, token, cache_dir, force_download, local_files_only: options of the Hub, as in
                transformers.
            kwargs: fields of `EnsembleConfig`, such as `span_length`, in place of the saved values.

        Raises:
            ConfigError: no saved ensemble, an unknown option, or members that are missing or outside of the folder.
            MemberError, PolicyError: files of a member or the policy that are not whole.
        """
        return cast(Self, loading.load(cast(Any, cls), pretrained_model_name_or_path, **kwargs))
