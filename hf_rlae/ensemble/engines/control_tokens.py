"""What the control tokens of a prompt mean in each member's own terms."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from hf_rlae.ensemble.chats.control_strings import ControlStrings
from hf_rlae.members import Member
from hf_rlae.vocabulary import UnionVocabulary

logger = logging.getLogger(__name__)


class ControlTokens:
    """Translates control tokens of the first member into each member's own.

    A token keeps its name if the member has a control token of the same name, and both or neither end a text. Otherwise
    the end of a text becomes the member's end-of-text token, and the beginning its beginning-of-text token. Any other
    token has no counterpart: it is left out, with one warning.

    Args:
        members (`Sequence[Member]`), strings (`Sequence[ControlStrings]`): the members, and their control tokens.
        union (`UnionVocabulary`): the union vocabulary, which has the ids of prompts.
    """

    def __init__(self, members: Sequence[Member], strings: Sequence[ControlStrings], union: UnionVocabulary) -> None:
        self.members = list(members)
        self.strings = list(strings)
        first = members[0]
        self._ends = {*first.end_ids, union.stop_id}
        self._begin = first.tokenizer.bos_token_id
        self._silent = {first.tokenizer.pad_token_id, first.tokenizer.unk_token_id}
        self._known: dict[tuple[int, int], int | None] = {}
        self._only_in_prompts = frozenset(strings[0].names) - self._ends - self._silent - {self._begin}
        self._has_warned = False

    def separates(self, i: int) -> bool:
        """Whether the id `i` ends or begins a text."""
        return i in self._ends or i == self._begin

    def counterpart(self, index: int, i: int) -> int | None:
        """The id of member `index` that means what the id `i` means, or `None`."""
        if (index, i) not in self._known:
            found = self._find(index, i)
            if found is None and i not in self._silent:
                self._warn(index, i)
            self._known[index, i] = found
        return self._known[index, i]

    def check_completion(self, ids: Iterable[int]) -> None:
        """Logs a warning, once, for control tokens in a completion, where members read text only."""
        found = set() if self._has_warned else self._only_in_prompts.intersection(ids)
        if found:
            self._has_warned = True
            logger.warning(
                "input_ids has the control token %r inside a completion, where no member reads it; if it belongs to "
                "the prompt, pass prompt_length, or labels that are -100 on the prompt",
                self._name(min(found)),
            )

    def _find(self, index: int, i: int) -> int | None:
        member = self.members[index]
        same = self.strings[index].id_of.get(self._name(i))
        if same is not None and (same in member.end_ids) == (i in self._ends):
            return same
        if i in self._ends:
            own = member.tokenizer.eos_token_id
            return own if own in member.end_ids else next(iter(member.end_ids), None)
        return member.tokenizer.bos_token_id if i == self._begin else None

    def _name(self, i: int) -> str:
        return self.strings[0].names.get(i, "")

    def _warn(self, index: int, i: int) -> None:
        logger.warning(
            "input_ids has %s, which has no counterpart for member %s, so that member does not read it; if the prompt "
            "is a chat, pass `ensemble.generate(**ensemble.tokenizer.apply_chat_template(messages, "
            "add_generation_prompt=True))`",
            f"the control token {self._name(i)!r} of member {self.members[0].name}" if self._name(i) else f"the id {i}",
            self.members[index].name,
        )
