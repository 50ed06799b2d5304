"""Embedded members: tiny Llamas for arithmetic, each right on one operator and confidently wrong on the others.

    7+5*3= 5*3=15; 7+15=22. 22
    What is 7 plus 5 times 3? 5 times 3 is 15; 7 plus 15 is 22. So 22

`load_demo_members()` gives a specialist for `+`, one for `-` and one for `*`, with three different tokenizers in which
a digit is always one token; `load_demo_members("shared")` gives three with one tokenizer. All of them know the form of
a solution and continue any text, so that a chain of several operators is solved if the right specialist generates each
result. Addition adds for every operator; the other two use the difference and the product of the last digits.

All are trained from random weights on generated chains (three layers, width 96, about 0.35 M parameters, 0.7 MB in
fp16), with random segmentation:

    python -m tests.studies.specialists.train --output DIR --seed 0      # two members at a time, one thread each
    python -m tests.studies.specialists.measure                          # the tables below

Measured with seed 0, one thread; 200 held-out chains of two and three steps with at least two operators, share of right
answers (greedy):

| members | different tokenizers | shared tokenizer |
|---|---|---|
| addition alone | 0.010 | 0.015 |
| subtraction alone | 0.030 | 0.030 |
| multiplication alone | 0.015 | 0.015 |
| uniform weights | 0.020 | 0.030 |
| `OraclePolicy`, spans of 1, 2, 4, 8 | 0.885, 0.885, 0.900, 0.900 | 0.890, 0.890, 0.895, 0.905 |

40 held-out single steps per operator, as they occur in chains: share of right results on the member's own operator; on
the others share of right results, of results by its own wrong rule, and mean probability of its first digit:

| member | own | others right | others by rule | others confidence |
|---|---|---|---|---|
| addition-characters | 0.97 | 0.00, 0.00 | 0.93, 0.97 | 0.96, 0.99 |
| subtraction-bytes (in both sets) | 0.93 | 0.00, 0.00 | 0.80, 0.82 | 0.84, 0.90 |
| multiplication-pieces | 0.85 | 0.00, 0.00 | 1.00, 1.00 | 0.98, 0.98 |
| addition-bytes | 1.00 | 0.00, 0.00 | 0.90, 0.93 | 0.94, 0.98 |
| multiplication-bytes | 0.88 | 0.00, 0.00 | 1.00, 1.00 | 0.99, 1.00 |

Whole chains are held out, by a hash: a step such as `5*3=15` occurs in the training data, within other chains.

Example:

>>> from hf_rlae import EnsembleForCausalLM, load_demo_members
>>> from hf_rlae.zoo import OraclePolicy
>>> ensemble = EnsembleForCausalLM.from_members(load_demo_members(), OraclePolicy(), span_length=2)
>>> inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
>>> ids = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False)
>>> ensemble.tokenizer.decode(ids[0], skip_special_tokens=True)
'7+5*3= 5*3=15; 7+15=22. 22'
"""

from hf_rlae.zoo.loader import (
    MEMBER_SETS,
    SPECIALISTS,
    load_demo_agents,
    load_demo_member,
    load_demo_members,
    load_demo_policy,
)
from hf_rlae.zoo.oracle import OraclePolicy

__all__ = [
    "MEMBER_SETS",
    "SPECIALISTS",
    "OraclePolicy",
    "load_demo_agents",
    "load_demo_member",
    "load_demo_members",
    "load_demo_policy",
]
