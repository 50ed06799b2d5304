"""What a saved ensemble was built from, so that it stays the same: the commits and the vocabularies of its members."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.member_places import is_folder
from hf_rlae.errors import ConfigError, TokenizerError, first_sentence
from hf_rlae.hub_revisions import commit_of
from hf_rlae.vocabulary import vocabulary_hash

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

logger = logging.getLogger(__name__)


def vocabulary_hashes(ensemble: EnsembleForCausalLM) -> list[str | None]:
    """One hash per member of the text that its ids stand for; `None` where a tokenizer does not tell it."""
    try:
        vocabularies = ensemble.engine.vocabularies
    except TokenizerError:  # members that share a tokenizer without a fast backend
        return [None] * len(ensemble.members)
    hashes = {id(vocabulary): vocabulary_hash(vocabulary.pieces) for vocabulary in vocabularies}
    return [hashes[id(vocabulary)] for vocabulary in vocabularies]


def warn_of_unpinned(config: EnsembleConfig, ensemble: EnsembleForCausalLM, source: str) -> None:
    """Logs which members of a saved ensemble were loaded from whatever their repositories hold today.

    Args:
        config (`EnsembleConfig`): as it was saved.
        ensemble (`EnsembleForCausalLM`): as it was loaded.
        source (`str`): where it was loaded from.
    """
    revisions, bases = config.revisions or [], config.base_revisions or []
    unpinned = []
    for index, place in enumerate(config.members or []):
        if place and ensemble.config.members and ensemble.config.members[index] == place and not is_folder(place):
            if commit_of(_at(revisions, index)) is None:
                unpinned.append(place)
            elif ensemble.members[index].base_commit and commit_of(_at(bases, index)) is None:
                unpinned.append(f"the base model of {place}")
    if unpinned:
        logger.warning(
            "the ensemble %s does not say which commits of %s it was made with, so it changes when they do; "
            "`save_pretrained` or `push_to_hub` of the loaded ensemble writes the commits of today",
            source,
            ", ".join(unpinned),
        )


def pin_to_hub(ensemble: EnsembleForCausalLM, saved: set[int], token: Any = None) -> None:
    """Before a push: asks the Hub for the commits of members that are only known by name, and checks that they exist.

    Args:
        ensemble (`EnsembleForCausalLM`): its `config.revisions` get the commits.
        saved (`set[int]`): the members that are pushed with the ensemble.
        token: of the Hub.

    Raises:
        ConfigError: a member that is not on the Hub, so that nobody could load the pushed ensemble.
    """
    config = ensemble.config
    revisions = list(config.revisions or [None] * len(ensemble.members))
    for index, source in enumerate(config.members or []):
        if index in saved or not source or commit_of(revisions[index]) is not None:
            continue
        try:
            revisions[index] = HfApi(token=token).model_info(source, revision=revisions[index]).sha
        except (HfHubHTTPError, OSError) as error:
            raise ConfigError(
                f"member {index} ({source}) is not known to be on the Hub, so nobody could load the pushed ensemble: "
                f"{first_sentence(error)} Push that model first (`model.push_to_hub`, `tokenizer.push_to_hub`), and "
                "build the ensemble from its id"
            ) from error
    config.revisions = revisions


def _at(values: Sequence[str | None], index: int) -> str | None:
    return values[index] if index < len(values) else None
