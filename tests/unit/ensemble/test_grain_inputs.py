"""What goes into and comes out of ensembles that write characters, bytes or common tokens."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.ensemble.mixing import LogMixing
from hf_rlae.errors import ConfigError, InputError, TokenizerError
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, characters, chatml, instruct, raw_bytes, sentencepiece_bpe

GRAINS = ("character", "byte", "common")


def members():
    return [pair("llama", 0, byte_level_bpe()), pair("gpt2", 1, sentencepiece_bpe())]


def built(grain="byte", weights=(0.5, 0.5), **settings):
    return EnsembleForCausalLM.from_members(members(), StaticPolicy(weights), grain=grain, **settings)


def test_a_product_of_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"mixing=.log. with different tokenizers and grain=.token..*grain=.byte."):
        built("token", mixing="log")


@pytest.mark.parametrize("grain", GRAINS)
def test_a_plain_generate_writes_tokens_only(grain):
    with pytest.raises(ConfigError, match=f"grain='{grain}'.*set grain='token'"):
        EnsembleLogitsProcessor(built(grain))


def test_labels_that_are_never_written_are_named():
    ensemble = built()
    ids = torch.tensor([ensemble.tokenizer("Once upon a time")["input_ids"]])
    long = next(i for i in ids[0, 1:].tolist() if len(ensemble.union.pieces[i] or b"") > 1)
    with pytest.raises(InputError, match=rf"labels has the id {long} .*never written with grain='byte'"):
        ensemble(input_ids=ids, labels=ids)


@pytest.mark.parametrize("grain", ["token", *GRAINS])
@pytest.mark.parametrize("text", [" upon a time", "naïve 😀", ""])
def test_completion_ids_are_labels(grain, text):
    ensemble = built(grain)
    prompt = ensemble.tokenizer("Once")["input_ids"]
    ids = ensemble.tokenizer.completion_ids(text)
    assert ensemble.tokenizer.decode(prompt + ids) == "Once" + text
    if grain == "byte":
        assert len(ids) == len(text.encode())
    labels = torch.tensor([[-100] * len(prompt) + ids])
    if ids:
        assert torch.isfinite(ensemble(input_ids=torch.tensor([prompt + ids]), labels=labels).loss)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("copies", [1, 2])
def test_labels_may_begin_as_the_text_does(grain, copies):
    """`labels=input_ids` scores a whole text: nothing predicts its first column, and its beginning is given."""
    ensemble = EnsembleForCausalLM.from_members(members()[::-1], grain=grain)
    text = ensemble.tokenizer.completion_ids("the dogs ran")
    ids = torch.tensor([[ensemble.tokenizer.bos_token_id] * copies + text])
    with torch.no_grad():
        out = ensemble(ids, labels=ids)
    logps = out.logits[0, copies - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(out.loss, -logps[torch.arange(len(text)), ids[0, copies:]].mean())
    assert torch.isfinite(out.loss)


def test_text_that_nobody_has_a_token_for_cannot_be_written():
    given = [pair("llama", 0, characters()), pair("gpt2", 1, characters(with_newline=True))]
    ensemble = EnsembleForCausalLM.from_members(given, grain="byte")
    with pytest.raises(TokenizerError, match="no member has a token for"):
        ensemble.tokenizer.completion_ids("\x00")


@pytest.mark.parametrize("grain", GRAINS)
def test_a_second_turn_reads_the_first_in_tokens(grain):
    """The first member reads what the ensemble wrote in pieces as its own tokenizer encodes it."""
    ensemble = built(grain)
    prompt = ensemble.tokenizer("Once upon")["input_ids"]
    written = ensemble.tokenizer.completion_ids(" a time there was")
    whole = ensemble.tokenizer("Once upon a time there was")["input_ids"]
    assert ensemble.engine.encoder(prompt) == ensemble.engine.encoder(tuple(prompt))
    assert ensemble.engine.encoder(prompt)[0] == tuple(prompt)
    assert ensemble.engine.encoder(prompt + written) == ensemble.engine.encoder(whole)


@pytest.mark.parametrize("ends_with_stop", [False, True])
@pytest.mark.parametrize("grain", GRAINS)
def test_a_second_turn_of_a_chat_is_rendered_for_every_member(grain, ends_with_stop):
    """The ids of a chat whose first answer was written in pieces are those of the rendered chat."""
    given = [pair("llama", 0, chatml()), pair("gpt2", 1, instruct())]
    ensemble = EnsembleForCausalLM.from_members(given, grain=grain)
    tokenizer = ensemble.tokenizer

    def rendered(*contents):
        roles = ("user", "assistant", "user")
        chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    whole = rendered("hello", "the dogs ran", "more")
    answer = len(rendered("hello"))
    after = whole.index(tokenizer.convert_tokens_to_ids("<|im_end|>"), answer)
    written = tokenizer.completion_ids("the dogs ran")
    assert written != whole[answer:after]
    end = [ensemble.union.stop_id] if ends_with_stop else [whole[after]]
    ids = [*whole[:answer], *written, *end, *whole[after + 1 :]]
    assert ensemble.engine.encoder(ids) == ensemble.engine.encoder(whole)


@pytest.mark.parametrize("grain", GRAINS)
def test_custom_generate_returns_tokens_of_the_first_member(grain):
    ensemble = built(grain)
    first = ensemble.members[0]
    inputs = first.tokenizer("Once upon", return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": 8, "do_sample": False}
    torch.manual_seed(0)
    found = first.model.generate(**inputs, custom_generate=ensemble.as_custom_generate(), **options)
    plain = ensemble.generate(**ensemble.tokenizer("Once upon", return_tensors="pt"), **options)
    raw = b"".join(ensemble.union.pieces[i] or b"" for i in plain[0, width:].tolist())
    own = [i for i in found[0, width:].tolist() if ensemble.engine.vocabularies[0].pieces[i]]
    assert ensemble.engine.vocabularies[0].to_bytes(own) == raw
    assert tuple(own) == ensemble.engine.vocabularies[0].canonical_ids(raw)


def test_the_floor_of_a_product_keeps_what_a_member_proposes_possible():
    """A string that one member has dropped stays possible; one that no member proposes stays impossible."""
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5, 0.0]] * 2)
    log_z = [torch.zeros(2), torch.zeros(2)]
    mixed = LogMixing().of_probs([p.clone() for p in probs], log_z, torch.tensor([[0.5, 0.5], [1.0, 0.0]])).exp()
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2))
    assert float(mixed[0, :3].min()) > 1e-3
    assert float(mixed[0, 3]) == 0
    assert float(mixed[0, 1]) > 0.98
    assert torch.equal(mixed[1], probs[0][1])  # one member with weight is that member
    same = LogMixing().of_probs([probs[0].clone()] * 3, [torch.zeros(2)] * 3, torch.tensor([[0.2, 0.3, 0.5]] * 2)).exp()
    torch.testing.assert_close(same, probs[0])  # and so are copies of it


def test_the_alphabet_of_each_grain():
    """Bytes belong to every grain; characters and common tokens are longer strings."""
    tokens, characters_, bytes_, common = (built(grain).union for grain in ("token", *GRAINS))
    assert {len(piece) for piece in bytes_.id_of} == {1}
    assert set(bytes_.id_of) < set(common.id_of)
    assert set(bytes_.id_of) <= set(characters_.id_of)
    assert all(len(p) == 1 or len(p.decode()) == 1 for p in characters_.id_of)
    vocabularies = built("common").engine.vocabularies
    both = set(vocabularies[0].ids_of) & set(vocabularies[1].ids_of)
    assert set(common.id_of) == both | set(bytes_.id_of)
    assert set(tokens.id_of) == set(vocabularies[0].ids_of) | set(vocabularies[1].ids_of)
    for union in (characters_, bytes_, common):
        assert union.pieces[: vocabularies[0].size] == vocabularies[0].pieces
        assert union.stop_id == union.size - 1


def test_members_that_share_a_tokenizer_can_write_bytes():
    shared = byte_level_bpe()
    ensemble = EnsembleForCausalLM.from_members([pair("llama", 0, shared), pair("gpt2", 1, shared)], grain="byte")
    out = ensemble.generate(
        **ensemble.tokenizer("Once", return_tensors="pt"), max_new_tokens=5, min_new_tokens=5, do_sample=False
    )
    assert all(len(ensemble.union.pieces[i]) == 1 for i in out[0, -5:].tolist())


def test_a_raw_byte_tokenizer_is_its_own_byte_grain():
    """A member whose tokens are bytes has the same distribution at the grain of tokens and of bytes."""
    given = [pair("llama", 0, raw_bytes()), pair("gpt2", 1, byte_level_bpe())]
    text = "The dogs ran"
    losses = []
    for grain in ("token", "byte"):
        ensemble = EnsembleForCausalLM.from_members(given, StaticPolicy([1.0, 0.0]), grain=grain)
        ids = torch.tensor([ensemble.tokenizer(text)["input_ids"]])
        labels = ids.clone()
        labels[:, :3] = -100
        losses.append(ensemble(input_ids=ids, labels=labels).loss)
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(("mixing", "expected"), [("linear", "token"), ("power", "token"), ("log", "character")])
def test_auto_is_tokens_but_for_products(mixing, expected, caplog):
    with caplog.at_level("INFO", "hf_rlae"):
        ensemble = built("auto", mixing=mixing)
    assert ensemble.union.grain == expected
    assert ensemble.config.grain == "auto"
    assert f"grain='auto' is grain='{expected}' here" in caplog.text


@pytest.mark.parametrize("mixing", ["linear", "log"])
def test_auto_leaves_a_shared_tokenizer_alone(mixing):
    shared = byte_level_bpe()
    ensemble = EnsembleForCausalLM.from_members(
        [pair("llama", 0, shared), pair("gpt2", 1, shared)], grain="auto", mixing=mixing
    )
    assert ensemble.union is None
