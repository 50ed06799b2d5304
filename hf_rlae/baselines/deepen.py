"""DeePEn: the members' distributions are averaged as similarities to common tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from hf_rlae.baselines.per_ensemble import kept
from hf_rlae.baselines.registry import baselines
from hf_rlae.baselines.relay import Relay
from hf_rlae.baselines.spaces import NO_TOKEN, space_of
from hf_rlae.baselines.tokenwise import Candidates, TokenwiseBaseline
from hf_rlae.checks import COUNT, POSITIVE, Bounds, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import TokenizerError

logger = logging.getLogger(__name__)

_ROWS = 16384
"""Number of tokens whose similarities are computed at once."""


@baselines.register("deepen")
class DeePEn(TokenwiseBaseline):
    r"""Averages distributions in a space of similarities to anchor tokens, and maps the mean back to one member.

    Anchors are tokens that all members have. For a token v of member k, row v of `R_k` is the softmax over the anchors
    of the cosines between the embeddings of v and of the anchors. At every token:

    1. `r_k = p_k R_k`, the member's distribution seen as one over anchors;
    2. `r = sum_k w_k r_k`;
    3. from `p = p_main` on, `steps` times `p <- p + eta p * (R_main (r / (p R_main)) - 1)`, a gradient step on
       `KL(r || p R_main)`;
    4. the next token is chosen from p, a distribution over the tokens of the member `main`.

    Every member appends its own ids of the token.

    Source: DeePEn (arXiv 2404.12715) for the relative representation, its mean and a search for the inverse. It departs
    from the paper in these points, all ours: each step of the search is scaled by p, so that p stays a distribution
    and, with `learning_rate` up to 1, the divergence never grows (a step on p itself gives negative entries);
    `temperature` in the softmax; at most `num_anchors` anchors; input embeddings; the first end id of each member is
    one anchor.

    It needs `4 * num_anchors * sum_k V_k` bytes on the ensemble's device: 1.6 GB for two members of 49,152 and 151,936
    ids with 2,000 anchors. They are built once per ensemble.

    Args:
        num_anchors (`int`, defaults to 2000): the largest number of anchors, taken evenly from the ids of `main`.
        temperature (`float`, defaults to 0.1): of the softmax over cosines (ours).
        steps (`int`, defaults to 5), learning_rate (`float`, defaults to 1.0): of the search; the rate is from 0 to 1
            (ours).
        weights (`Sequence[float]`, *optional*): one per member; `None` = equal.
        main (`int`, defaults to 0): the member whose tokens are written.
    """

    def __init__(
        self,
        num_anchors: int = 2000,
        temperature: float = 0.1,
        steps: int = 5,
        learning_rate: float = 1.0,
        weights: Sequence[float] | None = None,
        main: int = 0,
    ) -> None:
        check_number("num_anchors", num_anchors, COUNT)
        check_number("temperature", temperature, POSITIVE)
        check_number("steps", steps, Bounds(0, is_whole=True))
        check_number("learning_rate", learning_rate, Bounds(above=0, most=1))
        super().__init__(weights, main)
        self.num_anchors, self.temperature = num_anchors, temperature
        self.steps, self.learning_rate = steps, learning_rate

    def prepare(self, ensemble: EnsembleForCausalLM) -> None:
        """See [`Baseline`]; the matrices are built here."""
        super().prepare(ensemble)
        self._relative(ensemble)

    def _relative(self, ensemble: EnsembleForCausalLM) -> list[torch.Tensor]:
        name = f"relative representations {self.num_anchors} {self.temperature} {self.main} on {ensemble.device}"
        return kept(ensemble, name, lambda: relative_matrices(ensemble, self.num_anchors, self.temperature, self.main))

    def running(self, relay: Relay) -> list[int]:
        """See [`TokenwiseBaseline`]; a row also ends with the context of the member `main`."""
        reader, own = relay.readers[self.main], relay.ids[self.main]
        for row in [row for row in relay.open if not reader.fits(row, own[row])]:
            relay.end(row)
        return super().running(relay)

    def candidates(self, relay: Relay, rows: list[int]) -> Candidates:
        """See [`TokenwiseBaseline`]."""
        matrices = self._relative(relay.ensemble)
        weights = self.weights_of(len(relay.readers))
        found: torch.Tensor | None = None
        mean = torch.zeros(len(rows), matrices[0].shape[1], device=relay.ensemble.device)
        for index, weight in enumerate(weights):
            needed = weight or index == self.main
            places, logits = relay.logits(index, rows) if needed else ([], None)
            if logits is None:
                continue
            excluded = relay.space.tokens(index).to(logits.device) == NO_TOKEN
            probs = logits.masked_fill(excluded, -torch.inf).softmax(-1)
            mean[places] += weight * (probs @ matrices[index])
            found = probs if index == self.main else found
        if found is None:
            raise TokenizerError("the main member has no tokens to write")
        mean = mean / mean.sum(-1, keepdim=True)  # of the members that are within their context
        probs = search(found, matrices[self.main], mean, self.steps, self.learning_rate)
        tokens = relay.space.tokens(self.main).to(probs.device)
        return probs.log().masked_fill(tokens == NO_TOKEN, -torch.inf), tokens


def search(
    probs: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor, steps: int, learning_rate: float
) -> torch.Tensor:
    """Distributions over tokens whose relative representations come nearer to given ones.

    Args:
        probs (`torch.Tensor` of shape `(R, V)`): where the search starts; tokens with probability 0 keep it.
        matrix (`torch.Tensor` of shape `(V, A)`): each row sums to 1.
        target (`torch.Tensor` of shape `(R, A)`): each row sums to 1.
        steps (`int`), learning_rate (`float`): see [`DeePEn`].

    Example:

    >>> import torch
    >>> near = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    >>> search(torch.tensor([[0.5, 0.5]]), near, torch.tensor([[0.74, 0.26]]), 100, 1.0).round(decimals=3)
    tensor([[0.8000, 0.2000]])
    """
    least = torch.finfo(probs.dtype).tiny
    for _ in range(steps):
        ratio = target / (probs @ matrix).clamp(min=least)
        probs = probs + learning_rate * probs * (ratio @ matrix.T - 1)
        probs = probs / probs.sum(-1, keepdim=True)  # 1 up to rounding
    return probs


def relative_matrices(
    ensemble: EnsembleForCausalLM, num_anchors: int, temperature: float, main: int = 0
) -> list[torch.Tensor]:
    """The relative representations of each member's tokens, of shape `(V_m, A)`; each row sums to 1.

    Raises:
        TokenizerError: the members have no token in common.
    """
    anchors = anchor_ids(ensemble, num_anchors, main)
    found = []
    for member, ids in zip(ensemble.members, anchors, strict=True):
        member.prepare()
        embeddings: Any = member.model.get_input_embeddings()
        weight = embeddings.weight.detach()[: member.vocab_size]
        weight = normalize(weight.to(ensemble.device, torch.float32), dim=-1)
        near = weight[ids.to(weight.device)].T
        matrix = torch.cat([(rows @ near / temperature).softmax(-1) for rows in weight.split(_ROWS)])
        found.append(matrix)
    num_bytes = sum(matrix.nbytes for matrix in found)
    logger.info("DeePEn: %d anchors, relative representations of %d bytes", len(anchors[0]), num_bytes)
    return found


def anchor_ids(ensemble: EnsembleForCausalLM, num_anchors: int, main: int) -> list[torch.Tensor]:
    """Each member's ids of the anchors, `(A,)`."""
    space = space_of(ensemble)
    firsts: list[dict[int, int]] = []  # a member's first id of each token
    for index in range(len(ensemble.members)):
        first: dict[int, int] = {}
        for i, token in enumerate(space.tokens(index).tolist()):
            if token != NO_TOKEN:
                first.setdefault(token, i)
        firsts.append(first)
    common = [token for token in firsts[main] if all(token in first for first in firsts)]
    if not common:
        raise TokenizerError(
            "the members have no token in common, so there are no anchors to compare them by; use members whose "
            "tokenizers share tokens, or another baseline"
        )
    count = min(num_anchors, len(common))
    chosen = [common[at * len(common) // count] for at in range(count)]
    return [torch.tensor([first[token] for token in chosen]) for first in firsts]
