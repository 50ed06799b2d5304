"""Members read one growing text, each in its own ids: what one method chooses is handed on to all."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList

from hf_rlae.baselines.inputs import Prompts, completion_text
from hf_rlae.baselines.per_ensemble import kept
from hf_rlae.baselines.protocol import BaselineOutput
from hf_rlae.baselines.reader import Reader, runner_of
from hf_rlae.baselines.spaces import IdSpace, TokenSpace, space_of
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import InputError
from hf_rlae.members.paths import MakeRunner


class Relay:
    """The completions of one batch, and the members that read them.

    Source: ours; how a token is handed on is told by each method's paper.

    Args:
        ensemble (`EnsembleForCausalLM`): holds the members.
        prompts (`Prompts`): B prompts.
        settings (`GenerationConfig`): of the call: lengths, sampling, stop strings.
        home (`int`, *optional*): the member whose ids are kept. Members with another tokenizer encode the whole
            completion again after every token. `None`: every member appends its own ids of the token. The ids of the
            prompt never change.

    Attributes:
        space (`TokenSpace`): the tokens.
        readers (`list[Reader]`): one per member.
        ids (`list[list[tuple[int, ...]]]`): the completions in each member's ids, by member and row.
        raw (`list[bytes]`): the bytes of the completions.
        open (`list[int]`): the rows that have not ended.
        ends (`frozenset[int]`): the tokens that end a text.
    """

    def __init__(
        self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig, home: int | None = None
    ) -> None:
        self.ensemble = ensemble
        self.prompts = prompts
        self.space: TokenSpace = space_of(ensemble)
        self.home = home
        runners = runners_of(ensemble)
        self.readers = [
            Reader(member, runner, [row[index] for row in prompts.rows])
            for index, (member, runner) in enumerate(zip(ensemble.members, runners, strict=True))
        ]
        self.ids: list[list[tuple[int, ...]]] = [[()] * len(prompts) for _ in self.readers]
        self.raw = [b""] * len(prompts)
        self.num_tokens = [0] * len(prompts)
        self.open = list(range(len(prompts)))
        self.most: int = settings.max_new_tokens or 0
        self._least: int = settings.min_new_tokens or 0
        self._samples = bool(settings.do_sample)
        self._warpers = _warpers_of(ensemble, settings)
        stops = settings.stop_strings or ()
        self.ends = frozenset(self.space.ends.tolist())
        self._stops = [stop.encode() for stop in ([stops] if isinstance(stops, str) else stops)]
        self._last: list[tuple[int, ...]] = [()] * len(prompts)
        self._newest: list[dict[int, tuple[tuple[int, ...], torch.Tensor]]] = [{} for _ in self.readers]

    # -- reading ------------------------------------------------------------------------------------------

    def logits(self, index: int, rows: Sequence[int]) -> tuple[list[int], torch.Tensor | None]:
        """A member's next-token logits.

        Args:
            index (`int`): the member.
            rows (`Sequence[int]`): R rows.

        Returns:
            `tuple`: the places in `rows` of those within the member's context, and the logits `(n, V_m)` of these on
            the ensemble's device; `None` if there are none.
        """
        reader, own, newest = self.readers[index], self.ids[index], self._newest[index]
        places = [place for place, row in enumerate(rows) if reader.fits(row, own[row])]
        if not places:
            return places, None
        unread = [rows[at] for at in places if rows[at] not in newest or newest[rows[at]][0] is not own[rows[at]]]
        if unread:
            found = reader.read({row: own[row] for row in unread}, dict.fromkeys(unread, 1))
            newest.update({row: (own[row], logits) for row, logits in found.items()})
        return places, torch.cat([newest[rows[at]][1] for at in places]).to(self.ensemble.device)

    # -- choosing -----------------------------------------------------------------------------------------

    def choose(
        self,
        rows: Sequence[int],
        logps: torch.Tensor,
        tokens: torch.Tensor | None = None,
        written: Sequence[int] | None = None,
    ) -> list[int]:
        """Chooses the next token of each row: the most likely one, or a draw.

        Args:
            rows (`Sequence[int]`): R rows.
            logps (`torch.Tensor` of shape `(R, N)`): log-probabilities.
            tokens (`torch.LongTensor` of shape `(R, N)` or `(N,)`, *optional*): what they are of; default: all.
            written (`Sequence[int]`, *optional*): number of tokens of each of B rows, if some are only drafted.

        Raises:
            InputError: no member can continue a row, and `min_new_tokens` does not let it end.
        """
        tokens = torch.arange(logps.shape[1], device=logps.device) if tokens is None else tokens.to(logps.device)
        tokens = tokens.expand_as(logps)
        counts = self.num_tokens if written is None else written
        early = [counts[row] < self._least for row in rows]
        if any(early):
            is_end = torch.isin(tokens, self.space.ends.to(tokens.device))
            logps = logps.masked_fill(is_end & torch.tensor(early, device=logps.device)[:, None], -torch.inf)
        if bool((logps == -torch.inf).all(-1).any()):
            raise InputError(
                "no member can continue a text, and min_new_tokens does not let it end; lower min_new_tokens"
            )
        if self._samples:
            scores = self._warpers(torch.empty(len(rows), 0, dtype=torch.long, device=logps.device), logps)  # type: ignore[arg-type]
            places = torch.multinomial(scores.softmax(-1), 1)
        else:
            places = logps.argmax(-1, keepdim=True)
        chosen: list[int] = tokens.gather(1, places)[:, 0].tolist()
        return chosen

    # -- writing ------------------------------------------------------------------------------------------

    def append(self, row: int, token: int) -> bool:
        """Hands a token on to all members; returns whether the row goes on."""
        self.num_tokens[row] += 1
        if token in self.ends:
            self._last[row] = (token,)
            return self.end(row)
        former = len(self.raw[row])
        self.raw[row] += self.space.raw(token)
        home = 0 if self.home is None else self.home
        for index, own in enumerate(self.ids):
            keeps = self.home is None or self.space.groups[index] == self.space.groups[home]
            own[row] = (*own[row], *self.space.ids(index, token)) if keeps else self.space.encode(index, self.raw[row])
        stopped = any(self.raw[row].find(stop, max(0, former - len(stop) + 1)) >= 0 for stop in self._stops)
        if stopped or self.num_tokens[row] >= self.most:
            return self.end(row)
        return True

    def end(self, row: int) -> bool:
        """Ends a row; returns `False`."""
        self.open.remove(row)
        return False

    def output(self) -> BaselineOutput:
        """The completions and their costs."""
        return BaselineOutput(
            [self._text(row) for row in range(len(self.raw))],
            torch.tensor(self.num_tokens),
            torch.tensor([reader.num_tokens for reader in self.readers]).T.contiguous(),
            [reader.forward_calls for reader in self.readers],
        )

    def _text(self, row: int) -> str:
        if not isinstance(self.space, IdSpace):
            return self.raw[row].decode("utf-8", "replace")
        written = (*self.ids[0][row], *self._last[row])
        return completion_text(self.ensemble.tokenizer, self.prompts.rows[row][0], written)


def runners_of(ensemble: EnsembleForCausalLM) -> list[MakeRunner]:
    """What runs each member, found out once; loads members that are given by name."""
    return kept(ensemble, "runners", lambda: [runner_of(member) for member in ensemble.members])


def _warpers_of(ensemble: EnsembleForCausalLM, settings: GenerationConfig) -> LogitsProcessorList:
    """What acts on the distribution in sampling, such as temperature and top-p.

    Raises:
        InputError: settings with which the text so far changes the distribution.
    """
    settings = copy.deepcopy(settings)
    settings.min_length, settings.min_new_tokens = 0, None
    processors: LogitsProcessorList = ensemble._get_logits_processor(
        generation_config=settings,
        input_ids_seq_length=1,
        encoder_input_ids=None,
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device=str(ensemble.device),
        model_kwargs={},
    )
    others = [type(entry).__name__ for entry in processors if not type(entry).__name__.endswith("Warper")]
    if others:
        raise InputError(
            f"the generation settings need {others[0]}, which this baseline cannot apply: it writes tokens that the "
            "members read in different ids. Leave the setting out; temperature, top_k, top_p and the like are supported"
        )
    return processors
