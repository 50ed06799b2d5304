"""`select="prompt"`: the policy picks members once, from the prompt; the others do not run and are not loaded."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from hf_rlae import (
    ConfigError,
    EnsembleForCausalLM,
    EnsembleLogitsProcessor,
    MemberError,
    PerplexityPolicy,
    PolicyConfig,
    PolicyError,
    PolicyModel,
    StaticPolicy,
)
from hf_rlae.members import Member
from tests.support.ensembles import TEXTS, Recorder, encode, endless
from tests.support.models import pair
from tests.support.rlae import CHAT_TEMPLATES
from tests.support.rlae import members as rlae_members
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

GREEDY = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
WEIGHTS = ([0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.6, 0.15])
"""The weights of the prompts `TEXTS`."""


class ByPrompt(Recorder):
    """Weights by the prompt alone: those of `WEIGHTS` for `TEXTS`, in any batch."""

    observes_members = False

    def __init__(self):
        super().__init__(lambda state: torch.tensor([self.weights(text) for text in state.text]))

    @staticmethod
    def weights(text):
        return next((own for prompt, own in zip(TEXTS, WEIGHTS, strict=True) if text.startswith(prompt)), [0, 0, 1.0])


@pytest.fixture(scope="module", params=["shared", "different"])
def folders(request, tmp_path_factory):
    """Folders of three members with one tokenizer, or with two."""
    other = byte_level_bpe() if request.param == "shared" else sentencepiece_bpe()
    place = tmp_path_factory.mktemp(request.param)
    kinds = (("llama", byte_level_bpe()), ("gpt2", other), ("llama", byte_level_bpe()))
    for seed, (architecture, tokenizer) in enumerate(kinds):
        model, own = pair(architecture, seed, tokenizer, num_hidden_layers=1)
        model.save_pretrained(place / str(seed))
        own.save_pretrained(place / str(seed))
    return [str(place / str(seed)) for seed in range(len(kinds))]


@pytest.fixture(scope="module")
def whole(folders):
    """The same members, loaded."""
    return [Member.load(folder, end_token_ids=[]) for folder in folders]


def without_weights(folder, target):
    """A copy of a member's folder without the weights, as if they had not been downloaded."""
    for path in Path(folder).iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    return str(target)


def loaded(ensemble):
    return [member.is_loaded for member in ensemble.members]


@pytest.mark.parametrize("picked", [1, 2, None])
def test_each_row_is_written_by_its_own_members(folders, whole, picked):
    """Law: a row's text is that of its picked members with these weights, whatever the other rows pick."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=picked)
    out = ensemble.generate(**encode(*TEXTS), max_new_tokens=9, **GREEDY)
    assert out.span_weights.shape == (3, 1, 3)
    for row, text in enumerate(TEXTS):
        plain = endless(whole, StaticPolicy(WEIGHTS[row]), max_active_members=picked)
        alone = plain.generate(**encode(text), max_new_tokens=9, **GREEDY)
        assert out.sequences[row, -9:].tolist() == alone.sequences[0, -9:].tolist()
        ours, theirs = (torch.stack(found.logits, 1).log_softmax(-1) for found in (out, alone))
        torch.testing.assert_close(ours[row], theirs[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.span_weights[row], alone.span_weights[0, :1])


def test_the_policy_is_asked_once_before_any_member_runs(folders):
    policy = ByPrompt()
    ensemble = endless(folders, policy, select="prompt", span_length=2)
    states = []
    policy.policy = lambda state: states.append(loaded(ensemble)) or torch.tensor([WEIGHTS[0]] * state.batch_size)
    ensemble.generate(**encode(*TEXTS), max_new_tokens=7)
    assert policy.asked == [[(0, text) for text in TEXTS]]
    assert states == [[False, False, False]]


def test_rows_that_do_not_pick_a_member_are_not_read(folders):
    """Rows per forward pass; with different tokenizers, rows may be padding in short passes, where that is cheaper."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=1)
    inputs = encode(*(text + " and then" * 30 for text in TEXTS))
    ensemble.generate(**inputs, max_new_tokens=2)
    rows = [[], [], []]
    for member, seen in zip(ensemble.members, rows, strict=True):
        member.model.register_forward_pre_hook(
            lambda _m, _a, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])), with_kwargs=True
        )
    ensemble.generate(**inputs, max_new_tokens=4)
    assert [seen[0] for seen in rows] == [1, 1, 1]
    if ensemble.union is None:
        assert rows == [[1] * 4] * 3


def test_members_that_are_never_picked_are_never_loaded(folders, whole, tmp_path):
    """The weights of the second member are not even there."""
    names = [folders[0], without_weights(folders[1], tmp_path), folders[2]]
    ensemble = endless(names, ByPrompt(), select="prompt", max_active_members=1)
    assert loaded(ensemble) == [False, False, False]
    plain = endless(whole, ByPrompt(), max_active_members=1)
    assert ensemble.config.vocab_size == plain.config.vocab_size
    assert ensemble.generation_config.to_dict() == plain.generation_config.to_dict()
    inputs = encode(*TEXTS[:2])
    ids = ensemble.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert loaded(ensemble) == [True, False, True]
    assert torch.equal(ids[0, -5:], plain.generate(**encode(TEXTS[0]), max_new_tokens=5, do_sample=False)[0, -5:])
    with pytest.raises(MemberError, match=f"member {tmp_path} cannot be loaded"):
        ensemble.generate(**encode(TEXTS[2]), max_new_tokens=5)
    again = ensemble.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(ids, again)


def test_members_that_generate_loads_are_ordinary_models(folders, tmp_path, monkeypatch):
    """They can be trained, and a folder that was given relative to the working directory stays the same folder."""
    place = Path(folders[0])
    monkeypatch.chdir(place.parent)
    ensemble = endless([place.name, *folders[1:]], StaticPolicy([1, 0, 0]), select="prompt")
    monkeypatch.chdir(tmp_path)
    ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2)
    model = ensemble.members[0].model
    assert not any(parameter.is_inference() for parameter in [*model.parameters(), *model.buffers()])
    model(**encode(TEXTS[0])).logits.sum().backward()
    assert model.get_output_embeddings().weight.grad is not None


def test_weights_that_do_not_belong_to_the_config(folders, tmp_path):
    place = without_weights(folders[1], tmp_path)
    ensemble = endless([folders[0], place, folders[2]], ByPrompt(), select="prompt", max_active_members=1)
    model, _ = pair("gpt2", 1, ensemble.members[1].tokenizer, num_hidden_layers=1, hidden_size=16)
    model.save_pretrained(tmp_path)
    with pytest.raises(MemberError, match="hidden_size=16, but its config declares 32"):
        ensemble.generate(**encode(TEXTS[2]), max_new_tokens=2)


def test_a_saved_ensemble_loads_lazily_too(folders, tmp_path):
    ensemble = endless(folders, StaticPolicy([0, 1, 0]), select="prompt")
    inputs = encode(*TEXTS)
    ids = ensemble.generate(**inputs, max_new_tokens=5, do_sample=False)
    ensemble.save_pretrained(tmp_path, save_members=True)
    again = EnsembleForCausalLM.from_pretrained(tmp_path)
    assert loaded(again) == [False] * 3
    assert torch.equal(ids, again.generate(**inputs, max_new_tokens=5, do_sample=False))
    assert loaded(again) == [False, True, False]


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickled", "copied"])
def test_copies_of_members_that_are_not_loaded(folders, copied):
    ensemble = endless(folders, StaticPolicy([0, 0, 1]), select="prompt")
    twin = copied(ensemble)
    inputs = encode(*TEXTS)
    ids = twin.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert loaded(twin) == [False, False, True]
    assert torch.equal(ids, ensemble.generate(**inputs, max_new_tokens=5, do_sample=False))


def test_a_dtype_that_is_set_before_the_weights_are_loaded(folders):
    ensemble = endless(folders, StaticPolicy([0, 0, 1]), select="prompt").to(torch.bfloat16)
    assert [member.dtype for member in ensemble.members] == [torch.bfloat16] * 3
    assert loaded(ensemble) == [False] * 3
    ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2)
    assert {parameter.dtype for parameter in ensemble.members[2].model.parameters()} == {torch.bfloat16}


def test_beams(folders):
    """Beams are reordered among rows that read different members."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=1)
    ids = ensemble.generate(**encode(*TEXTS), max_new_tokens=6, num_beams=3)
    for row, text in enumerate(TEXTS):
        alone = ensemble.generate(**encode(text), max_new_tokens=6, num_beams=3)
        assert ids[row, -6:].tolist() == alone[0, -6:].tolist()


def test_proposed_tokens(folders):
    """Columns are removed again from members that read some of the rows."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=2)
    inputs = encode(" and then" * 5 + TEXTS[1])
    plain = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False)
    looked_up = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=2)
    assert torch.equal(plain, looked_up)


def test_rows_that_are_kept_continue_with_their_members(folders):
    """As in rollouts, where texts that have ended leave the batch."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=1)
    inputs = encode(*TEXTS)
    whole = ensemble.generate(**inputs, max_new_tokens=9, do_sample=False)
    cache = ensemble.new_cache()
    first = ensemble.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache)
    rows = torch.tensor([2, 0])
    cache.keep_rows(rows)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], dim=1)[rows]
    rest = {"max_new_tokens": 5, "do_sample": False, "past_key_values": cache}
    second = ensemble.generate(first[rows], attention_mask=mask, **rest)
    assert torch.equal(second, whole[rows])
    assert len(ensemble.policy.asked) == 2


def test_draws_among_the_picked_members(folders):
    """`draw` draws from the members with weight, for every token of the text."""
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=2, draw="token")
    torch.manual_seed(0)
    out = ensemble.generate(**encode(*TEXTS), max_new_tokens=30, do_sample=True, return_dict_in_generate=True)
    assert [set(row.tolist()) for row in out.drawn_members] == [{0, 1}, {1, 2}, {0, 1}]


def test_another_turn_with_the_same_cache_picks_again(folders, whole):
    """The second prompt picks another member, which reads the whole text."""
    picks = iter([[1.0, 0, 0], [0, 0, 1.0]])
    policy = Recorder(lambda state: torch.tensor([next(picks)] * state.batch_size))
    policy.observes_members = False
    ensemble = endless(folders, policy, select="prompt")
    cache = ensemble.new_cache()
    first = ensemble.generate(**encode(TEXTS[0]), max_new_tokens=4, do_sample=False, past_key_values=cache)
    more = torch.cat([first, encode(" and then")["input_ids"]], dim=1)
    second = ensemble.generate(more, max_new_tokens=4, do_sample=False, past_key_values=cache)
    third = endless(whole, StaticPolicy([0, 0, 1.0])).generate(more, max_new_tokens=4, do_sample=False)
    assert torch.equal(second, third)


def test_rows_whose_picked_members_are_outgrown_continue_with_others(tmp_path):
    """As everywhere: if a text outgrows all its members, the others continue it, and are loaded then."""
    for seed, length in enumerate((12, 256)):
        model, tokenizer = pair("llama", seed, num_hidden_layers=1, max_position_embeddings=length)
        model.save_pretrained(tmp_path / str(seed))
        tokenizer.save_pretrained(tmp_path / str(seed))
    policy = Recorder(lambda state: torch.tensor([[1.0, 0]] * state.batch_size))
    policy.observes_members = False
    ensemble = endless([str(tmp_path / "0"), str(tmp_path / "1")], policy, select="prompt")
    inputs = encode("def f", "She")
    ids = ensemble.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 20
    assert loaded(ensemble) == [True, True]
    plain = endless([str(tmp_path / "0"), str(tmp_path / "1")], StaticPolicy([1, 0]))
    assert torch.equal(ids, plain.generate(**inputs, max_new_tokens=20, do_sample=False))


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_members_that_read_their_own_rendering_of_a_chat(kind):
    given = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in rlae_members(kind)]
    for (_, tokenizer), template in zip(given, CHAT_TEMPLATES, strict=True):
        tokenizer.chat_template = template

    def policy(state):
        return torch.tensor([[0.0, 1.0] if "big" in text else [1.0, 0.0] for text in state.text])

    policy.observes_members = False
    ensemble = endless(given, policy, select="prompt")
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    rendered = ensemble.tokenizer.apply_chat_template(chats, add_generation_prompt=True)
    ids = ensemble.generate(**rendered, max_new_tokens=6, do_sample=False)
    for row, chat in enumerate(chats):
        one = ensemble.tokenizer.apply_chat_template([chat], add_generation_prompt=True)
        assert ids[row, -6:].tolist() == ensemble.generate(**one, max_new_tokens=6, do_sample=False)[0, -6:].tolist()
    plain = endless(given, policy)
    assert torch.equal(ids, plain.generate(**rendered, max_new_tokens=6, do_sample=False))


def test_forward_scores_with_the_picked_members(folders, whole):
    ensemble = endless(folders, ByPrompt(), select="prompt", max_active_members=2)
    plain = endless(whole, StaticPolicy(WEIGHTS[0]), max_active_members=2)
    inputs = encode(TEXTS[0] + " a little girl")
    start = encode(TEXTS[0])["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :start] = -100
    found, expected = (built(**inputs, labels=labels) for built in (ensemble, plain))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits, equal_nan=True)


def a_function(state):
    return torch.tensor([WEIGHTS[0]] * state.batch_size)


class LooksAtMembers:
    """A policy that says that it observes no member, and does."""

    observes_members = False

    def __call__(self, state):
        return state.top_logps.softmax(-1)


def test_policies_that_observe_members_are_refused(folders):
    ensemble = endless(folders, ByPrompt(), select="prompt")
    model = PolicyModel(PolicyConfig.for_members(ensemble.members, span_length=None))
    for policy in (model, a_function):
        with pytest.raises(ConfigError, match=r'select="prompt": .*this (PolicyModel|function) observes the members'):
            ensemble.set_policy(policy)
    for policy in (PerplexityPolicy(), LooksAtMembers()):
        ensemble.set_policy(policy)
        with pytest.raises(PolicyError, match=r'select="prompt": the policy looks at the outputs of members'):
            ensemble.generate(**encode(TEXTS[0]), max_new_tokens=2)
    assert loaded(ensemble) == [False] * 3


def test_what_does_not_go_together(folders):
    with pytest.raises(ConfigError, match=r"select='promt'.*did you mean 'prompt'"):
        endless(folders, ByPrompt(), select="promt")
    ensemble = endless(folders, StaticPolicy([1, 0, 0]), select="prompt")
    with pytest.raises(ConfigError, match=r'select="prompt": in a plain `generate` the host runs'):
        EnsembleLogitsProcessor(ensemble)
