"""The study of long spans: its bound and its table."""

from __future__ import annotations

from hf_rlae import StaticPolicy, load_demo_members
from hf_rlae.zoo import OraclePolicy
from tests.studies import chain_policies as chains
from tests.studies.long_spans import KIND, LongSpan, plan, right_table, solved_in_hindsight


def test_one_span_for_a_whole_text_is_one_member():
    members, questions = load_demo_members(KIND), chains.held_out_questions(6, num_steps=(1,))
    alone = [
        chains.right_answers(chains.with_policy(members, StaticPolicy(weights), 110), questions)[0]
        for weights in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    ]
    best = [bool(max(right)) for right in zip(*alone, strict=True)]
    assert solved_in_hindsight(members, questions, 110) == best
    assert any(best)


def test_no_choice_of_members_is_better():
    """The oracle gives all weight to one member per span, so what it solves is solved in hindsight."""
    members, questions = load_demo_members(KIND), chains.held_out_questions(8, num_steps=(2,))
    oracle = chains.right_answers(chains.with_policy(members, OraclePolicy(), 16), questions)[0]
    solved = solved_in_hindsight(members, questions, 16)
    assert all(not right or found for right, found in zip(oracle, solved, strict=True))
    assert 0 < oracle.sum() < len(questions)


def test_the_table_has_a_row_for_every_look_ahead():
    runs = plan([8, 16], ["supervised"], [0, 4], [20], seeds=2)
    assert len({run.name for run in runs}) == len(runs) == 4 + 8
    table = right_table([(run, {"right": "1100" if run.lookahead else "1000"}) for run in runs])
    assert table.rows[0] == ("oracle switching", "", "", "0.250", "0.250")
    assert table.rows[-1] == ("supervised", "4", "20", "0.500, 0.500", "0.500, 0.500")


def test_a_look_ahead_is_part_of_how_a_policy_is_trained():
    run = LongSpan(8, "ppo (gae)", lookahead=4, rollouts=3)
    training = run.training({"rollouts": None})
    assert (training.objective, training.rollouts, training.policy["lookahead_tokens"]) == ("ppo", 3, 4)
    assert LongSpan(8, "hindsight").training({"rollouts": None}) is None
