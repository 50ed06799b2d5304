"""GaC, UniTE, DeePEn and SAFE on a few tokens, worked by hand.

The first member has tokens of several letters, the second one token per byte.
"""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, get_baseline
from hf_rlae.baselines.deepen import anchor_ids, relative_matrices, search
from hf_rlae.vocabulary import ByteVocabulary
from tests.support.baselines import after, always
from tests.support.tokenizers import byte_level_bpe, raw_bytes

PIECES, BYTES = byte_level_bpe(), raw_bytes()
GREEDY = {"max_new_tokens": 2, "do_sample": False}


def text_of(name, members, prompt="a", **settings):
    options = {**GREEDY, **{key: settings.pop(key) for key in ("max_new_tokens", "min_new_tokens") if key in settings}}
    return get_baseline(name, **settings).generate(members, [prompt], **options)


def wide():
    """`th` .6, `t` .4 and `t` .7, `x` .3."""
    return [always(PIECES, {"th": 0.6, "t": 0.4}), always(BYTES, {"t": 0.7, "x": 0.3})]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, "tt", id="th .3, t .55, x .15"),
        pytest.param({"weights": [0.8, 0.2]}, "thth", id="th .48, t .46, x .06"),
        pytest.param({"threshold": 0.6}, "thth", id="the gate has .6, which is enough"),
        pytest.param({"threshold": 0.61}, "tt", id="the gate has too little"),
        pytest.param({"threshold": 0.7, "main": 1}, "tt", id="the other gate has .7"),
        pytest.param({"threshold": 0.71, "main": 1, "weights": [0.9, 0.1]}, "thth", id="th .54, t .43, x .03"),
    ],
)
def test_gac(settings, expected):
    assert text_of("gac", wide(), **settings).texts == [expected]


def test_gac_the_others_do_not_run_where_the_gate_is_sure():
    alone = text_of("gac", wide(), threshold=0.5)
    assert alone.member_tokens.tolist() == [[2, 0]]
    # after `a` the gate is not sure, then it is; the bytes of the first token are read when they are needed again
    first = after(PIECES, {"th": 0.55, "t": 0.45}, th={"t": 1.0}, t={"th": 0.5, "x": 0.5})
    output = text_of("gac", [first, always(BYTES, {"x": 1.0})], weights=[0.9, 0.1], threshold=0.8, max_new_tokens=3)
    assert output.texts == ["thtx"]  # th .495; t alone; th .45, x .55
    assert output.member_tokens.tolist() == [[3, 4]]


def test_gac_ends_are_one_token():
    """`t` .5, end .5 and `x` .4, end .6: end .55."""
    members = [always(PIECES, {"t": 0.51, "": 0.49}), always(BYTES, {"x": 0.4, "": 0.6})]
    output = text_of("gac", members)
    assert (output.texts, output.num_tokens.tolist()) == ([""], [1])
    assert text_of("gac", members, min_new_tokens=1).texts == ["t"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # U = {th, t}; first: th .6, t .4; second: both by `t`, th .5, t .5
        pytest.param({"top_k": 1}, "thth", id="th .55, t .45"),
        # U = {th, t, x}; first: th .6, t .4, x 0; second: th .7, t .7, x .3, so .41, .41, .18
        pytest.param({"top_k": 2}, "thth", id="th .51, t .41, x .09"),
        # th .2 * .6 + .8 * .5, t .2 * .4 + .8 * .5
        pytest.param({"top_k": 1, "weights": [0.2, 0.8]}, "thth", id="th .52, t .48"),
    ],
)
def test_unite(settings, expected):
    assert text_of("unite", wide(), **settings).texts == [expected]


def test_unite_union_of_one_token_each():
    """U = {t, x}: first t .5 / .5 = 1, as x has 0; second x .6, t .4 of the union. t .7, x .3."""
    members = [always(PIECES, {"t": 0.5, "th": 0.3, "a": 0.2}), always(BYTES, {"x": 0.6, "t": 0.4})]
    assert text_of("unite", members, top_k=1).texts == ["tt"]
    # GaC has x .3, t .45, th .15; with more weight on the second, x .36 against t .64
    assert text_of("unite", members, top_k=1, weights=[0.1, 0.9]).texts == ["xx"]  # t .46, x .54


def embed(members, **like):
    """Gives tokens orthogonal embeddings, apart from those that are like another one."""
    for (model, tokenizer), width in zip(members, (330, 257), strict=True):
        ids_of = ByteVocabulary(tokenizer).ids_of
        with torch.no_grad():
            weight = torch.zeros(width, 32)
            for place, text in enumerate(("t", "x", "a"), 1):
                weight[ids_of[text.encode()][0], place] = 1.0
            weight[:, 0] = (weight.abs().sum(1) == 0).float()
            for text, other in like.items():
                if text.encode() in ids_of:
                    weight[ids_of[text.encode()][0]] = weight[ids_of[other.encode()][0]]
            model.get_input_embeddings().weight.copy_(weight)
    return members


def test_deepen():
    """`th` has the embedding of `x`, so the second member's `x` speaks for it.

    Relative: t .4, x .6 and t .7, x .3; mean t .55, x .45. One full step from th .6, t .4: th .45, t .55.
    """
    members = embed(wide(), th="x")
    assert text_of("deepen", members, temperature=0.01, steps=1).texts == ["tt"]
    assert text_of("deepen", members, temperature=0.01, steps=0).texts == ["thth"]
    assert text_of("deepen", members, temperature=0.01, weights=[0.7, 0.3]).texts == ["thth"]  # t .49, th .51
    # a third of a step: th .55, t .45
    assert text_of("deepen", members, temperature=0.01, steps=1, learning_rate=0.33).texts == ["thth"]


def test_deepen_anchors_are_common_tokens_and_rows_sum_to_one():
    ensemble = EnsembleForCausalLM.from_members(embed(wide(), th="x"))
    ids = anchor_ids(ensemble, 2000, 0)
    assert len(ids[0]) == len(ids[1]) == 257  # all bytes, and the end
    first, second = relative_matrices(ensemble, 2000, 0.01)
    assert (first.shape, second.shape) == ((330, 257), (257, 257))
    torch.testing.assert_close(first.sum(1), torch.ones(330))
    th, x = (ByteVocabulary(PIECES).ids_of[text][0] for text in (b"th", b"x"))
    assert torch.equal(first[th], first[x])
    assert float(first[x].max()) > 0.999
    few = anchor_ids(ensemble, 10, 0)
    assert len(few[0]) == 10
    assert set(few[0].tolist()) <= set(ids[0].tolist())


def test_deepen_the_search_never_moves_away():
    """The divergence falls with every step, and p stays a distribution."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(40, 9, generator=generator).softmax(-1)
    start, target = (torch.randn(4, size, generator=generator).mul(2).softmax(-1) for size in (40, 9))
    former = torch.full((4,), torch.inf)
    for steps in range(8):
        probs = search(start, matrix, target, steps, 1.0)
        torch.testing.assert_close(probs.sum(-1), torch.ones(4))
        divergence = (target * (target / (probs @ matrix)).log()).sum(-1)
        assert bool((divergence < former).all())
        former = divergence


def test_safe_accepts_what_all_want_and_what_has_half_of_the_mass():
    first, second = always(PIECES, {"t": 0.4, "th": 0.3, "x": 0.3}), always(BYTES, {"t": 0.6, "x": 0.4})
    output = text_of("safe", [first, second], num_draft=2)
    assert output.texts == ["tt"]
    assert output.forward_calls == [2, 1]
    # the second wants x, and t has .55
    assert text_of("safe", [always(PIECES, {"t": 0.7, "x": 0.3}), always(BYTES, {"x": 0.6, "t": 0.4})]).texts == ["tt"]


def test_safe_ensembles_where_members_disagree():
    """`th` .3, `t` .55: the draft `th th` is dropped at its first token, twice."""
    output = text_of("safe", wide(), num_draft=2)
    assert output.texts == ["tt"]
    assert output.forward_calls == [3, 2]  # a draft of two tokens, then of the one that is left
    assert text_of("safe", wide(), drafter=1).texts == ["tt"]


def test_safe_has_no_say_inside_a_verifiers_token():
    """The drafter writes bytes. `th` is one token of the verifier, so it has no boundary behind `t`."""
    drafter = after(BYTES, {"t": 0.6, "y": 0.4}, t={"h": 0.6, "y": 0.4}, h={"t": 0.6, "y": 0.4})
    verifier = after(PIECES, {"t": 1.0}, t={"x": 1.0}, th={"x": 1.0})
    # at 0 both want t; at 1 the verifier, which would write x behind t, is not asked; at 2 x .5, t .3
    assert text_of("safe", [drafter, verifier], max_new_tokens=3).texts == ["thx"]
    assert text_of("gac", [drafter, verifier], max_new_tokens=3).texts[0].startswith("tx")


def test_safe_sharpens_flat_mixtures():
    """` th` .155, ` the` .155, `x` .29 and less: with the mass of ` the`, ` th` has .31."""
    members = [
        always(PIECES, {" th": 0.31, " the": 0.31, "x": 0.38}),
        always(BYTES, {"x": 0.2, "y": 0.3, "t": 0.25, "z": 0.25}),
    ]
    assert text_of("safe", members, max_new_tokens=1).texts == [" th"]
    assert text_of("safe", members, max_new_tokens=1, sharpen="none").texts == ["x"]
    assert text_of("safe", members, max_new_tokens=1, least_share=0.35).texts == ["x"]
