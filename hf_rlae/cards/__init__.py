"""Model cards: one template for ensembles, policies and adapters, with a head that the Hub reads."""

from hf_rlae.cards.card import Card, CardMember, code, member_of
from hf_rlae.cards.citations import CORY, PPO, RLAE
from hf_rlae.cards.evaluations import Evaluation, write_eval_results
from hf_rlae.cards.settings import changed_settings
from hf_rlae.cards.writing import CardedPush, keep_published_card, write_card

__all__ = [
    "CORY",
    "PPO",
    "RLAE",
    "Card",
    "CardMember",
    "CardedPush",
    "Evaluation",
    "changed_settings",
    "code",
    "keep_published_card",
    "member_of",
    "write_card",
    "write_eval_results",
]
