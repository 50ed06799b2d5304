"""State belongs to one call: no call, not even a failed one, changes another call or the models."""

from __future__ import annotations

import sys
import threading
from functools import cache

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, PolicyConfig, PolicyModel, StaticPolicy, UniformPolicy
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.members import Member
from tests.support.ensembles import TEXTS, Schedule, encode, endless, policy_of_text
from tests.support.models import pair, pairs, with_adapters
from tests.support.tiers import IS_NIGHTLY, draws, show_figure, slow
from tests.support.tokenizers import raw_bytes


@cache
def members():
    return pairs(["llama", "gpt2"], num_hidden_layers=1)


@cache
def adapted():
    """One base model with two adapters, as two members."""
    model, tokenizer = pair("llama", num_hidden_layers=1)
    model = with_adapters(model)
    return [(model, tokenizer), (model, tokenizer)]


def policy_of_members(state):
    """Weights from the members' last hidden states and entropies."""
    shown = torch.stack([hidden.float().mean(-1) for hidden in state.hidden_states], dim=1)
    return (shown + state.entropies / 10).softmax(1)


def two_adapters(policy=policy_of_members):
    return endless(adapted(), policy, span_length=2, adapter_names=["one", "two"])


ENSEMBLES = {
    "two_models": lambda: endless(members(), policy_of_members, span_length=2),
    "two_adapters": two_adapters,
    "two_tokenizers": lambda: endless(
        [members()[0], pair("gpt2", 1, raw_bytes(), num_hidden_layers=1)], policy_of_members, span_length=2
    ),
}


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_two_calls(name, options):
    """Law: two calls on one object are equal, with any calls in between, and the object does not change."""
    ensemble = ENSEMBLES[name]()
    before = dict(vars(ensemble))
    outputs = []
    for other in (TEXTS[1], TEXTS[2]):
        torch.manual_seed(3)
        outputs.append(ensemble.generate(**encode(TEXTS[0]), max_new_tokens=8, **{"do_sample": False, **options}))
        ensemble.generate(**encode(other), max_new_tokens=3)
    assert torch.equal(*outputs)
    assert {key: id(value) for key, value in vars(ensemble).items()} == {k: id(v) for k, v in before.items()}


class Failure(Exception):
    """An exception of a user's own code in the middle of a call."""


class FailAt:
    """Fails at the n-th call; used as a stopping criterion, a logits processor or a streamer."""

    def __init__(self, n):
        self.left = n

    def tick(self):
        self.left -= 1
        if not self.left:
            raise Failure

    def criterion(self, input_ids, scores, **kwargs):
        self.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def processor(self, input_ids, scores):
        self.tick()
        return scores

    def put(self, value):
        self.tick()

    def end(self):
        pass


@pytest.mark.parametrize("where", ["stopping_criteria", "logits_processor", "streamer", "policy", "member"])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_exception_leaves_nothing_behind(name, where):
    """Law: a call that failed half way does not change the next call, the models or torch."""
    ensemble = ENSEMBLES[name]()

    def generate(**more):
        torch.manual_seed(3)
        return ensemble.generate(**encode(TEXTS[0]), max_new_tokens=8, **more)

    moments = range(1, 5 if where == "policy" else 9) if IS_NIGHTLY else [4]  # the policy is asked four times
    for is_sampled in [False, True] if IS_NIGHTLY else [False]:
        expected, before = generate(do_sample=is_sampled), hooks_of(ensemble)
        for moment in moments:
            with pytest.raises(Failure):
                generate_failing(ensemble, generate, where, FailAt(moment), is_sampled)
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            assert hooks_of(ensemble) == before
            ensemble.set_policy(policy_of_members)
            assert torch.equal(generate(do_sample=is_sampled), expected)
    show_figure(f"{name}, {where}: {(1 + IS_NIGHTLY) * len(moments)} exceptions")


def hooks_of(ensemble):
    models = [member.model for member in ensemble.members]
    return [sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()) for model in models]


def generate_failing(ensemble, generate, where, fail, is_sampled):
    """A call in which something of the user's fails."""
    if where == "policy":
        ensemble.set_policy(lambda state: fail.processor(state.text, policy_of_members(state)))
        generate(do_sample=is_sampled)
    elif where == "member":
        head = ensemble.members[1].model.get_output_embeddings()
        handle = head.register_forward_hook(lambda module, args, output: fail.processor(args, output))
        try:
            generate(do_sample=is_sampled)
        finally:
            handle.remove()
    else:
        hook = {"streamer": fail, "stopping_criteria": [fail.criterion], "logits_processor": [fail.processor]}
        generate(do_sample=is_sampled, **{where: hook[where]})


@pytest.fixture
def eager_threads():
    """Makes threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize(
    ("name", "calls"),
    [
        *(("two_models", draws(20, 80)), ("two_adapters", draws(10, 40)), ("two_tokenizers", draws(20, 80))),
        *slow(("two_models", 100), ("two_adapters", 40), ("two_tokenizers", 100)),
    ],
)
def test_two_threads(name, calls):
    """Law: concurrent calls of two threads on one ensemble equal the same calls in sequence."""
    ensemble = ENSEMBLES[name]()
    texts = [*TEXTS, "the other thing"]
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = [encode(text) for text in texts]  # tokenizers are not thread-safe
    expected = [ensemble.generate(**entry, **options) for entry in inputs]
    equal, errors = [0, 0], []
    start = threading.Barrier(2)

    def work(thread):
        start.wait()
        for call in range(calls):
            which = (call + thread) % len(texts)
            try:
                equal[thread] += torch.equal(ensemble.generate(**inputs[which], **options), expected[which])
            except Exception as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, f"{len(errors)} errors, the first: {errors[0]}"
    assert equal == [calls, calls]
    show_figure(f"{name}: {2 * calls} calls of two threads")


@pytest.mark.parametrize("adapter", ["one", "two"])
def test_each_member_uses_its_own_adapter(adapter):
    """Law: with all weight on it, a member uses its own adapter of the shared base model."""
    (model, _), _ = adapted()
    ensemble = two_adapters(StaticPolicy([adapter == "one", adapter == "two"]))
    inputs = encode(*TEXTS)
    got = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False)
    before = model.active_adapter
    model.set_adapter(adapter)
    try:
        assert torch.equal(got, model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None))
    finally:
        model.set_adapter(before)


def test_adapters_of_one_base_are_mixed():
    """Two adapters of one base model are mixed, and the active adapter stays active."""
    (model, _), _ = adapted()
    ids = encode(TEXTS[0])["input_ids"]
    probs = []
    with torch.no_grad():
        for adapter in ("two", "one"):
            model.set_adapter(adapter)
            probs.append(model(input_ids=ids).logits.softmax(-1))
        got = two_adapters(StaticPolicy([0.3, 0.7]))(input_ids=ids).logits.softmax(-1)
    torch.testing.assert_close(got, 0.3 * probs[1] + 0.7 * probs[0], atol=1e-5, rtol=0)
    assert model.active_adapter == "one"
    assert float((probs[0] - probs[1]).abs().max()) > 0.01


# The models that were passed in


@pytest.mark.parametrize("training", [False, True])
def test_models_keep_what_they_have(training):
    """Models keep requires_grad, mode, config and generation config; tokenizers keep their padding side."""
    (model, tokenizer), other = pairs(["llama", "gpt2"])
    model.train(training)
    model.lm_head.weight.requires_grad_(False)
    model.generation_config.update(max_new_tokens=3, do_sample=True)
    side, tokenizer.padding_side = tokenizer.padding_side, "right"

    def facts():
        return (
            [(name, p.requires_grad, p._version, p.data_ptr()) for name, p in model.named_parameters()],
            model.training,
            model.generation_config.to_dict(),
            model.config.to_dict(),
            tokenizer.padding_side,
            tokenizer.pad_token,
        )

    try:
        before = facts()
        ensemble = EnsembleForCausalLM.from_members([(model, tokenizer), other])
        inputs = ensemble.tokenizer(list(TEXTS), return_tensors="pt", padding=True)
        assert inputs["attention_mask"][:, -1].all(), "the ensemble's tokenizer pads on the left"
        ensemble.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=7)
        ids = inputs["input_ids"]
        ensemble(input_ids=ids, attention_mask=inputs["attention_mask"], labels=ids)
        assert facts() == before
    finally:
        tokenizer.padding_side = side


class Scores(nn.Module):
    """A policy with a parameter."""

    num_members = 2

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, state):
        return self.scores.softmax(0).expand(state.batch_size, -1)


def test_parameters_mean_the_policy():
    """`parameters()`, `state_dict()` and `num_parameters()` cover the policy only, not the members."""
    ensemble = endless(members(), Scores())
    assert [name for name, _ in ensemble.named_parameters()] == ["policy.scores"]
    assert list(ensemble.state_dict()) == ["policy.scores"]
    assert ensemble.num_parameters() == 2
    ensemble.set_policy(None)
    assert list(ensemble.parameters()) == []
    assert ensemble.state_dict() == {}


def test_moving_and_eval_reach_the_members():
    """`.to()` and `.eval()` apply to members; `.train()` applies to the policy only."""
    pair_of_models = pairs(["llama", "gpt2"])
    ensemble = endless(pair_of_models, Scores())
    models = [model for model, _ in pair_of_models]
    assert ensemble.dtype == torch.float32
    ensemble.to(torch.bfloat16)
    assert ensemble.dtype == torch.bfloat16
    assert {p.dtype for model in models for p in model.parameters()} == {torch.bfloat16}
    assert ensemble.policy.scores.dtype == torch.bfloat16
    ensemble.float()
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}
    ensemble.train()
    assert ensemble.policy.training
    assert not any(model.training for model in models)
    for model in models:
        model.train()
    ensemble.eval()
    assert not any(model.training for model in [*models, ensemble.policy])
    ensemble.to("meta")
    assert {p.device.type for model in models for p in model.parameters()} == {"meta"}
    assert ensemble.device.type == "meta"


# Saving and loading


@pytest.fixture
def folders(tmp_path):
    """Saves two members to folders."""
    paths = []
    for name, (model, tokenizer) in zip(("a", "b"), members(), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


@pytest.mark.parametrize("policy", [None, UniformPolicy(), StaticPolicy([0.9, 0.1])])
def test_round_trip(folders, tmp_path, policy):
    """A loaded ensemble has the same members, settings, policy and generation config, and generates the same text."""
    settings = {
        "span_length": 3,
        "mixing": "log",
        "min_weight": 0.05,
        "max_active_members": 2,
        "end_token_ids": [[5, 6], None],
    }
    ensemble = EnsembleForCausalLM.from_members(folders, policy, **settings)
    ensemble.generation_config.update(max_new_tokens=7, do_sample=False)
    ensemble.save_pretrained(tmp_path / "ensemble")
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True)
    for name, value in settings.items():
        assert getattr(loaded.config, name) == value
    assert type(loaded.policy) is type(ensemble.policy)
    assert vars(loaded.policy) == vars(ensemble.policy)
    assert loaded.generation_config.to_dict() == ensemble.generation_config.to_dict()
    assert loaded.config.vocab_size == ensemble.config.vocab_size
    direct = endless(members(), policy, **settings)
    direct.generation_config = ensemble.generation_config
    for other in (loaded, direct):
        assert other.generate(**encode(*TEXTS)).shape == ensemble.generate(**encode(*TEXTS)).shape
        torch.testing.assert_close(other(**encode(*TEXTS)).logits, ensemble(**encode(*TEXTS)).logits)


def test_ends_are_not_lost(folders, tmp_path):
    """Empty lists (only the length ends texts) and the options of a `Member` are saved and loaded."""
    for name, given, options, ends in (
        ("none", folders, {"end_token_ids": [[], []]}, [(), ()]),
        ("its own", [Member.load(folders[0], end_token_ids=[5]), folders[1]], {}, [(5,), (0,)]),
    ):
        ensemble = EnsembleForCausalLM.from_members(given, **options)
        ensemble.save_pretrained(tmp_path / name)
        loaded = EnsembleForCausalLM.from_pretrained(tmp_path / name, allow_outside=True)
        assert [member.end_ids for member in loaded.members] == [member.end_ids for member in ensemble.members] == ends


def test_options_that_contradict_a_member(folders):
    member = Member.load(folders[0])
    with pytest.raises(ConfigError, match=r"end_token_ids=\[5\]: member 0 is a Member that was made with \[0\]"):
        EnsembleForCausalLM.from_members([member, folders[1]], end_token_ids=[[5], None])


def test_settings_can_be_changed_in_loading(folders, tmp_path):
    """`from_pretrained` accepts fields of the ensemble's config; a learned policy keeps its own config."""
    policy = PolicyModel(PolicyConfig.for_members(members(), hidden_size=8, span_length=4))
    EnsembleForCausalLM.from_members(folders, policy, span_length=4).save_pretrained(tmp_path / "e")
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "e", allow_outside=True, min_weight=0.2, draw="token")
    assert (loaded.config.min_weight, loaded.config.draw, loaded.config.span_length) == (0.2, "token", 4)
    assert loaded.policy.config.span_length == 4
    with pytest.raises(ConfigError, match="min_weight"):
        EnsembleForCausalLM.from_pretrained(tmp_path / "e", allow_outside=True, min_weight=2.0)


def test_loading_with_another_policy(folders, tmp_path):
    """A policy that is passed to `from_pretrained` replaces the saved one."""
    EnsembleForCausalLM.from_members(folders, StaticPolicy([1, 0])).save_pretrained(tmp_path / "e")
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "e", allow_outside=True, policy=policy_of_text)
    assert loaded.policy is policy_of_text


def test_the_config_alone(folders, tmp_path):
    """`EnsembleConfig` is loaded as it was saved, without loading a member."""
    EnsembleForCausalLM.from_members(folders, StaticPolicy([3, 1]), span_length=5).save_pretrained(tmp_path / "e")
    config = EnsembleConfig.from_pretrained(tmp_path / "e")
    assert config.members == ["../a", "../b"]
    assert config.span_length == 5
    assert config.policy == {"name": "static", "weights": [0.75, 0.25]}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_whole_or_not_at_all(folders, tmp_path, monkeypatch):
    """If saving fails half way, the folder does not change."""
    target = tmp_path / "ensemble"
    ensemble = EnsembleForCausalLM.from_members(folders, StaticPolicy([0.5, 0.5]))
    ensemble.save_pretrained(target)
    before = contents(target)
    assert {"config.json", "generation_config.json"} <= set(before)

    def broken(self, directory, **kwargs):
        (target.__class__(directory) / "generation_config.json").write_text("{")
        raise OSError("no space left on device")

    ensemble.set_policy(StaticPolicy([0.1, 0.9]))
    with monkeypatch.context() as patch:
        patch.setattr(GenerationConfig, "save_pretrained", broken)
        with pytest.raises(OSError, match="no space"):
            ensemble.save_pretrained(target)
    assert contents(target) == before
    assert sorted(path.name for path in target.iterdir()) == sorted(before)
    ensemble.save_pretrained(target)
    assert contents(target) != before


@pytest.mark.parametrize("what", ["member", "policy"])
def test_what_cannot_be_saved(folders, tmp_path, what):
    """A member without a folder, or a function as policy, raises an error that names it; no file is written."""
    given = members() if what == "member" else folders
    ensemble = EnsembleForCausalLM.from_members(given, policy_of_text if what == "policy" else None)
    with pytest.raises(ConfigError, match="member 0" if what == "member" else "policy function"):
        ensemble.save_pretrained(tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists() or not any((tmp_path / "ensemble").iterdir())


def test_an_adapter_is_not_lost_in_saving(folders, tmp_path):
    """Saving a PEFT member raises an error, or it is loaded with its adapter: never silently as its base model."""
    base = AutoModelForCausalLM.from_pretrained(folders[0])
    model = with_adapters(base, names=["default"])
    ensemble = EnsembleForCausalLM.from_members([(model, members()[0][1])])
    try:
        ensemble.save_pretrained(tmp_path / "ensemble")
    except ConfigError as error:
        assert "adapter" in str(error)  # noqa: PT017
        return
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True)
    torch.testing.assert_close(loaded(**encode(TEXTS[0])).logits, ensemble(**encode(TEXTS[0])).logits)


def test_a_cache_can_be_continued():
    """A caller can keep the state of a call: `forward` continues from it, and twice gives the same."""
    ensemble = endless(members(), Schedule([0.2, 0.8], [0.7, 0.3]), span_length=2)
    ids = encode(TEXTS[0])["input_ids"]
    with torch.no_grad():
        whole = ensemble(input_ids=ids, prompt_length=3).logits
        states = [ensemble(input_ids=ids[:, :5], prompt_length=3).past_key_values for _ in range(2)]
        for state in states:
            rest = ensemble(input_ids=ids[:, 5:], past_key_values=state).logits
            torch.testing.assert_close(rest, whole[:, 5:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["two_models", "two_tokenizers"])  # a lock serialises adapters of one base model
def test_what_a_policy_sees_is_its_own_call(name):
    """Law: a policy observes the hidden states of its own call, even if another thread runs the same model.

    Whenever the call is inside a member's head, another thread runs the whole model.
    """
    ensemble = ENSEMBLES[name]()
    inputs = encode("the dogs", tokenizer=ensemble.tokenizer)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    expected = ensemble.generate(**inputs, **options).span_weights
    own_thread, met, finished = threading.get_ident(), [], []

    def intrude(model):
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        finished.append(model)

    def meet(model):
        if threading.get_ident() == own_thread:
            met.append(model)
            intruder = threading.Thread(target=intrude, args=(model,), daemon=True)
            intruder.start()
            intruder.join(timeout=10)

    models = [member.model for member in ensemble.members]
    handles = [
        model.get_output_embeddings().register_forward_hook(lambda *_, model=model: meet(model)) for model in models
    ]
    try:
        got = ensemble.generate(**inputs, **options).span_weights
    finally:
        for handle in handles:
            handle.remove()
    assert set(met) == set(models)
    assert finished == met
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["two_models", "two_tokenizers"])
def test_a_call_can_have_a_policy_of_its_own(name):
    """Law: `new_cache(policy=...)` asks that policy in its call, and the ensemble's own in every other one."""
    ensemble, other = ENSEMBLES[name](), ENSEMBLES[name]()
    other.set_policy(StaticPolicy([0.1, 0.9]))
    inputs, options = encode(*TEXTS), {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    own, expected = ensemble.generate(**inputs, **options), other.generate(**inputs, **options)
    cache = ensemble.new_cache(record=True, policy=StaticPolicy([0.1, 0.9]))
    found = ensemble.generate(**inputs, **options, past_key_values=cache)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.span_weights, expected.span_weights)
    assert not torch.equal(found.span_weights, own.span_weights)
    assert torch.equal(ensemble.generate(**inputs, **options).span_weights, own.span_weights)
    with torch.no_grad():
        logits = ensemble(**inputs, past_key_values=ensemble.new_cache(policy=StaticPolicy([0.1, 0.9]))).logits
        torch.testing.assert_close(logits, other(**inputs).logits, equal_nan=True)
    with pytest.raises(ConfigError, match="3 members"):
        ensemble.new_cache(policy=StaticPolicy([1, 1, 1]))


@pytest.mark.parametrize("architectures", [("llama", "gpt2"), ("llama", "mamba")])
def test_a_call_can_mix_where_the_ensemble_draws(architectures):
    """Law: with `may_draw=False` the members are mixed, so that even the most likely tokens can be asked for."""
    given = [pair(architecture, seed) for seed, architecture in enumerate(architectures)]
    drawing, mixing = endless(given, policy_of_text, draw="word"), endless(given, policy_of_text)
    options = {"max_new_tokens": 6, "do_sample": False}
    cache = drawing.new_cache(may_draw=False)
    found = drawing.generate(**encode(*TEXTS), **options, past_key_values=cache)
    assert torch.equal(found, mixing.generate(**encode(*TEXTS), **options))
    assert cache.draws is None
    with pytest.raises(InputError, match="do_sample"):
        drawing.generate(**encode(*TEXTS), **options)


@pytest.mark.parametrize("name", ["two_models", "two_tokenizers"])
def test_the_mask_of_every_call_counts(name):
    """Law: a cache that was reset is a new one, also if its first prompts had no padding and the next ones have."""
    ensemble = ENSEMBLES[name]()
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = ensemble.generate(**encode(*TEXTS), **options)
    cache = ensemble.new_cache()
    ensemble.generate(**encode(TEXTS[0]), **options, past_key_values=cache)
    cache.reset()
    assert torch.equal(ensemble.generate(**encode(*TEXTS), **options, past_key_values=cache), expected)


def test_the_mask_of_a_second_turn_counts():
    """Law: padding between two turns of a conversation changes nothing."""
    ensemble = ENSEMBLES["two_models"]()
    options = {"max_new_tokens": 6, "do_sample": False}
    ids = encode(TEXTS[0])["input_ids"]
    cache = ensemble.new_cache()
    first = ensemble.generate(ids, **options, past_key_values=cache)
    further = encode("The 3 big dogs")["input_ids"]
    pads = torch.full((1, 3), 7)
    whole = torch.cat([first, pads, further], dim=1)
    mask = torch.ones_like(whole)
    mask[:, first.shape[1] : first.shape[1] + 3] = 0
    second = ensemble.generate(whole, attention_mask=mask, **options, past_key_values=cache)
    plain = ensemble.generate(torch.cat([first, further], dim=1), **options)
    assert second[0, -6:].tolist() == plain[0, -6:].tolist()
