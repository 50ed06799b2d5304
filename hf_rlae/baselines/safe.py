"""SAFE: one member drafts, the others verify, and only disputed tokens at common boundaries are ensembled."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from transformers import GenerationConfig

from hf_rlae.baselines.inputs import Prompts
from hf_rlae.baselines.protocol import Baseline, BaselineOutput, check_member
from hf_rlae.baselines.registry import baselines
from hf_rlae.baselines.relay import Relay, runners_of
from hf_rlae.baselines.spaces import NO_TOKEN, TokenSpace, space_of
from hf_rlae.checks import COUNT, SHARE, check_choice, check_number
from hf_rlae.ensemble import EnsembleForCausalLM

SHARPENINGS = ("prefix", "none")


@dataclass
class _Draft:
    """What the drafter proposes for one row.

    Attributes:
        tokens (`list[int]`): the tokens.
        logits (`list[torch.Tensor]`): the drafter's logits `(V_m,)` before each token.
        verdicts (`dict[int, list[torch.Tensor | None]]`): by verifier, its logits before each token, or `None` where it
            has no boundary.
    """

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    verdicts: dict[int, list[torch.Tensor | None]] = field(default_factory=dict)


@baselines.register("safe")
class Safe(Baseline):
    """Generate, verify, ensemble: in rounds until the text ends.

    1. *Generate.* The drafter writes `num_draft` tokens greedily.
    2. *Verify.* Each verifier encodes the completion with the draft, and reads it in one forward pass. A drafted token
       is accepted if some verifier has no token boundary where it begins, because that verifier cannot predict it
       there. It is also accepted if it is every verifier's most likely token, or if its mean probability over the
       members is above 0.5, which makes it the ensemble's most likely token.
    3. *Ensemble.* The first token that is not accepted is replaced by the most likely token of the members' mean
       distribution over the union vocabulary. If no token has a mean probability above 0.5, the mean is sharpened
       first. The rest of the draft is discarded, and the drafter continues after the new token.

    Sharpening by `"prefix"`: tokenizers split one word in different ways, so the mass of a token is moved to its
    shortest prefix to which the drafter gives more than `least_share`.

    Source: SAFE (arXiv 2510.15346), after its abstract and a public summary, so its equations are not cited by number.
    These points are ours: the mean is GaC's (the paper also combines SAFE with UniTE); the value of `least_share`; the
    ids of the prompt are kept when a verifier encodes a completion again; an ensembled token that equals the drafted
    one does not end the round. Greedy decoding only.

    Args:
        num_draft (`int`, defaults to 5): number of tokens in a draft. Source: a public summary of
            the paper.
        drafter (`int`, defaults to 0): the member that drafts; the paper takes the strongest.
        sharpen (`str`, defaults to `"prefix"`): `"prefix"` or `"none"`.
        least_share (`float`, defaults to 0.1): see above (ours).
    """

    samples = False

    def __init__(self, num_draft: int = 5, drafter: int = 0, sharpen: str = "prefix", least_share: float = 0.1) -> None:
        check_number("num_draft", num_draft, COUNT)
        check_choice("sharpen", sharpen, SHARPENINGS)
        check_number("least_share", least_share, SHARE)
        self.num_draft, self.drafter = num_draft, drafter
        self.sharpen, self.least_share = sharpen, least_share

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]."""
        check_member("drafter", self.drafter, ensemble)
        space_of(ensemble)
        runners_of(ensemble)

    def answer(self, ensemble: EnsembleForCausalLM, prompts: Prompts, settings: GenerationConfig) -> BaselineOutput:
        """See [`Baseline`]."""
        relay = Relay(ensemble, prompts, settings, home=self.drafter)
        while relay.open:
            drafts = self._generate(relay)
            for row in [row for row in relay.open if row not in drafts]:  # the drafter's context has ended
                relay.end(row)
            for index in range(len(relay.readers)):
                if index != self.drafter:
                    self._verify(relay, index, drafts)
            for row, draft in drafts.items():
                self._write(relay, row, draft)
        return relay.output()

    def _generate(self, relay: Relay) -> dict[int, _Draft]:
        """Drafts of all open rows; rows whose text the drafter cannot read have none."""
        drafts: dict[int, _Draft] = {}
        reader, own = relay.readers[self.drafter], list(relay.ids[self.drafter])
        running, written = list(relay.open), list(relay.num_tokens)
        tokens = relay.space.tokens(self.drafter).to(relay.ensemble.device)
        for _ in range(self.num_draft):
            running = [row for row in running if written[row] < relay.most and reader.fits(row, own[row])]
            if not running:
                break
            found = reader.read({row: own[row] for row in running}, dict.fromkeys(running, 1))
            logits = torch.cat([found[row] for row in running]).to(relay.ensemble.device)
            chosen = relay.choose(running, logits.masked_fill(tokens == NO_TOKEN, -torch.inf), tokens, written)
            for row, token, before in zip(running, chosen, logits, strict=True):
                draft = drafts.setdefault(row, _Draft())
                draft.tokens.append(token)
                draft.logits.append(before)
                written[row] += 1
                if token not in relay.ends:
                    own[row] = (*own[row], *relay.space.ids(self.drafter, token))
            running = [row for row in running if drafts[row].tokens[-1] not in relay.ends]
        return drafts

    def _verify(self, relay: Relay, index: int, drafts: dict[int, _Draft]) -> None:
        """Adds one verifier's logits before the drafted tokens, where it has boundaries."""
        reader = relay.readers[index]
        completions: dict[int, tuple[int, ...]] = {}
        wants: dict[int, int] = {}
        places: dict[int, list[int | None]] = {}
        for row, draft in drafts.items():
            ids, counts = self._boundaries(relay, index, row, draft)
            if reader.fits(row, ids):
                places[row] = counts
                known = [count for count in counts if count is not None]
                if known:
                    completions[row], wants[row] = ids, len(ids) - min(known) + 1
        found = reader.read(completions, wants) if completions else {}
        for row, draft in drafts.items():
            if row not in places:
                continue  # beyond its context, the member has no say
            logits = found[row].to(relay.ensemble.device) if row in found else None
            first = len(completions[row]) - wants[row] + 1 if row in found else 0
            draft.verdicts[index] = [
                None if count is None or logits is None else logits[count - first] for count in places[row]
            ]

    def _boundaries(
        self, relay: Relay, index: int, row: int, draft: _Draft
    ) -> tuple[tuple[int, ...], list[int | None]]:
        """A verifier's ids of the completion with its draft, and how many of them are before each drafted token."""
        space = relay.space
        pieces = [space.raw(token) for token in draft.tokens]
        if space.groups[index] == space.groups[self.drafter]:
            ids, starts = relay.ids[index][row], []
            for token in draft.tokens:
                starts.append(len(ids))
                if token not in relay.ends:
                    ids = (*ids, *space.ids(index, token))
            return ids, list(starts)
        raw = relay.raw[row] + b"".join(pieces)
        ids = space.encode(index, raw)
        lengths = [0, *accumulate(space.lengths(index, ids))]
        counts = {length: count for count, length in enumerate(lengths)}
        offsets = accumulate(map(len, pieces[:-1]), initial=len(relay.raw[row]))
        is_whole = lengths[-1] == len(raw)  # else the member cannot represent the text
        return ids, [counts.get(offset) if is_whole else None for offset in offsets]

    def _write(self, relay: Relay, row: int, draft: _Draft) -> None:
        """Accepts drafted tokens up to the first one that the ensemble replaces."""
        for place, token in enumerate(draft.tokens):
            verdicts = {index: own[place] for index, own in draft.verdicts.items()}
            known = {index: logits for index, logits in verdicts.items() if logits is not None}
            chosen = token
            if known and len(known) == len(verdicts):
                chosen = self._judged(relay, row, token, {self.drafter: draft.logits[place], **known})
            if not relay.append(row, chosen) or chosen != token:
                return

    def _judged(self, relay: Relay, row: int, token: int, logits: dict[int, torch.Tensor]) -> int:
        """The token that is written where all members have a boundary, from their logits `(V_m,)`."""
        if all(_best(relay.space, index, own) == token for index, own in logits.items() if index != self.drafter):
            return token
        logps = {index: relay.space.spread(index, own) for index, own in logits.items()}
        mean = torch.stack(list(logps.values())).exp().mean(0)
        if float(mean[token]) > 0.5:
            return token
        if self.sharpen == "prefix" and float(mean.max()) <= 0.5:
            mean = sharpened(mean, logps[self.drafter].exp(), self.least_share, relay.space)
        return relay.choose([row], mean.log()[None])[0]


def _best(space: TokenSpace, index: int, logits: torch.Tensor) -> int:
    """The token of a member's most likely id, from its logits `(V_m,)`."""
    tokens = space.tokens(index).to(logits.device)
    return int(tokens[logits.masked_fill(tokens == NO_TOKEN, -torch.inf).argmax()])


def sharpened(mean: torch.Tensor, drafter: torch.Tensor, least_share: float, space: TokenSpace) -> torch.Tensor:
    """Moves the mass of tokens to the shortest likely token of the drafter that begins them.

    Args:
        mean, drafter (`torch.Tensor` of shape `(V,)`): the probabilities of the ensemble and of the drafter.
        least_share (`float`): tokens to which the drafter gives more receive mass.
        space (`TokenSpace`): the tokens.
    """
    likely = [token for token in (drafter > least_share).nonzero()[:, 0].tolist() if space.raw(token)]
    mean = mean.clone()
    for token in sorted(likely, key=lambda token: len(space.raw(token))):
        begun = space.begun_with(token)
        mean[token] += mean[begun].sum()
        mean[begun] = 0
    return mean
