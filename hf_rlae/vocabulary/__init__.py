"""Floor 1: canonical bytes of tokens, the union vocabulary, and the alignment of each member's vocabulary onto it."""

from hf_rlae.vocabulary.alignment import Alignment, Boundary, Canonical, Lent, TailMap, Target
from hf_rlae.vocabulary.bytes_per_token import bytes_per_token
from hf_rlae.vocabulary.round_trip import Form, check_round_trip, choose_normalization
from hf_rlae.vocabulary.special_ids import are_token_ids, token_ids
from hf_rlae.vocabulary.token_bytes import ByteVocabulary
from hf_rlae.vocabulary.union import OUTSIDE, UnionVocabulary, same_vocabulary
from hf_rlae.vocabulary.vocabulary_hash import vocabulary_hash

__all__ = [
    "OUTSIDE",
    "Alignment",
    "Boundary",
    "ByteVocabulary",
    "Canonical",
    "Form",
    "Lent",
    "TailMap",
    "Target",
    "UnionVocabulary",
    "are_token_ids",
    "bytes_per_token",
    "check_round_trip",
    "choose_normalization",
    "same_vocabulary",
    "token_ids",
    "vocabulary_hash",
]
