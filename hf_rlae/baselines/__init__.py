"""Floor 5: baselines, the other ways in which several members answer prompts, behind one call."""

from hf_rlae.baselines.best_fixed import BestFixed
from hf_rlae.baselines.best_member import BestMember
from hf_rlae.baselines.by_policy import EnsembleBaseline, EntropyBaseline, PerplexityBaseline, UniformBaseline
from hf_rlae.baselines.costs import member_tokens
from hf_rlae.baselines.deepen import DeePEn
from hf_rlae.baselines.fixed_weights import FixedWeights, best_fixed_weights, simplex_grid
from hf_rlae.baselines.gac import GaC
from hf_rlae.baselines.majority_vote import MajorityVote
from hf_rlae.baselines.pair_ranker import PairRanker
from hf_rlae.baselines.pair_training import AnswerPair, answer_pairs, train_pair_ranker
from hf_rlae.baselines.pairrm import pairrm_judge
from hf_rlae.baselines.protocol import Baseline, BaselineOutput
from hf_rlae.baselines.registry import baselines, get_baseline, list_baselines
from hf_rlae.baselines.safe import Safe
from hf_rlae.baselines.unite import UniTE

__all__ = [
    "AnswerPair",
    "Baseline",
    "BaselineOutput",
    "BestFixed",
    "BestMember",
    "DeePEn",
    "EnsembleBaseline",
    "EntropyBaseline",
    "FixedWeights",
    "GaC",
    "MajorityVote",
    "PairRanker",
    "PerplexityBaseline",
    "Safe",
    "UniTE",
    "UniformBaseline",
    "answer_pairs",
    "baselines",
    "best_fixed_weights",
    "get_baseline",
    "list_baselines",
    "member_tokens",
    "pairrm_judge",
    "simplex_grid",
    "train_pair_ranker",
]
