"""Maps distributions over the union vocabulary to the vocabulary of one member."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary


class HostVocabulary:
    """Restricts distributions over the union vocabulary to the vocabulary of the host.

    The mass of a union token that the host lacks goes to the longest host token that is a prefix of it. The mass of
    STOP goes to one of the host's end ids, the most likely one by the host's own scores. Union tokens without such a
    host token are left out, and the rest is renormalised. Special tokens that are not text have no mass.

    Args:
        vocabulary (`ByteVocabulary`), end_ids (`Sequence[int]`): the vocabulary and the end ids of the host.
        union (`UnionVocabulary`): the union vocabulary, whose first ids are the host's.
        stop_ids (`Sequence[int]`): the ids of `end_ids` that can receive the mass of STOP.
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
        """Moves the index tensors to a device."""
        for name in ("end_ids", "stop_ids", "lent_from", "lent_to"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def restrict(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """Maps logits over the union to logits over the host's vocabulary, with the same sum of exponentials.

        Args:
            logits (`torch.FloatTensor` of shape `(B, V)`): logits over the union, in fp32.
            host_scores (`torch.FloatTensor` of shape `(B, V_host)`): the host's scores, to choose an end id.

        Returns:
            `torch.FloatTensor` of shape `(B, V_host)`: logits over the host's vocabulary.
        """
        probs = logits.softmax(-1)
        kept = probs[:, : self.size].index_fill(1, self.end_ids, 0.0)
        kept.index_add_(1, self.lent_to, probs[:, self.lent_from])
        if len(self.stop_ids):
            chosen = self.stop_ids[host_scores[:, self.stop_ids].argmax(1)]
            kept.scatter_add_(1, chosen[:, None], probs[:, self.stop_id, None])
        return (kept / kept.sum(1, keepdim=True)).log() + logits.logsumexp(1, keepdim=True)
