"""From the union vocabulary back to the vocabulary of one member."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary


class HostVocabulary:
    """Brings distributions over the union vocabulary onto the vocabulary of the host.

    Union tokens that the host lacks lend their mass to the longest host token that begins them; STOP goes to one of
    the host's end ids, the one that the host itself finds likeliest; what no host token begins is left out, and the
    rest is renormalised. Special tokens that are not text have no mass in the union and get none.

    Args:
        vocabulary (`ByteVocabulary`), end_ids (`Sequence[int]`): of the host.
        union (`UnionVocabulary`): its first ids are the host's.
        stop_ids (`Sequence[int]`): those of `end_ids` that STOP may become.
    """

    def __init__(
        self, vocabulary: ByteVocabulary, end_ids: Sequence[int], union: UnionVocabulary, stop_ids: Sequence[int]
    ) -> None:
        self.size = vocabulary.size
        self.stop_id = union.stop_id
        self.end_ids = torch.tensor(list(end_ids), dtype=torch.long)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.long)
        ends = set(end_ids)
        own = {piece: i for piece, ids in vocabulary.ids_of.items() for i in reversed(ids) if i not in ends}
        pairs = []
        for i in [*end_ids, *range(self.size, union.stop_id)]:
            piece = union.pieces[i] or b""
            found = next((own[piece[:n]] for n in range(len(piece), 0, -1) if piece[:n] in own), None)
            if found is not None:
                pairs.append((i, found))
        self.lent_from = torch.tensor([pair[0] for pair in pairs], dtype=torch.long)
        self.lent_to = torch.tensor([pair[1] for pair in pairs], dtype=torch.long)

    def to(self, device: torch.device) -> HostVocabulary:
        """Moves the tables."""
        for name in ("end_ids", "stop_ids", "lent_from", "lent_to"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def restrict(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """Logits over the union `(B, V)` to logits over the host's vocabulary, with the same sum of exponentials.

        Args:
            logits (`torch.FloatTensor` of shape `(B, V)`): fp32.
            host_scores (`torch.FloatTensor` of shape `(B, V_host)`): the host's, to choose among end ids.
        """
        probs = logits.softmax(-1)
        kept = probs[:, : self.size].index_fill(1, self.end_ids, 0.0)
        kept.index_add_(1, self.lent_to, probs[:, self.lent_from])
        if len(self.stop_ids):
            chosen = self.stop_ids[host_scores[:, self.stop_ids].argmax(1)]
            kept.scatter_add_(1, chosen[:, None], probs[:, self.stop_id, None])
        return (kept / kept.sum(1, keepdim=True)).log() + logits.logsumexp(1, keepdim=True)
