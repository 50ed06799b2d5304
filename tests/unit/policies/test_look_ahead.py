"""Greedy look-ahead: what a policy observes is what each member writes by itself, and the text does not change."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleLogitsProcessor, PolicyConfig, PolicyModel
from hf_rlae.errors import ConfigError, PolicyError
from hf_rlae.members.row_runner import RowRunner
from tests.support.ensembles import TEXTS, columns_read, encode, endless
from tests.support.models import pair, pairs
from tests.support.policies import assert_same_parameters, random_state
from tests.support.tiers import slow
from tests.support.tokenizers import raw_bytes

AHEAD = 3
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "looked up": {"do_sample": False, "prompt_lookup_num_tokens": 4},
    "without cache": {"do_sample": False, "use_cache": False},
}
KINDS = {
    "same": lambda: pairs(["llama", "gpt2"]),
    "sliding": lambda: pairs(["mistral", "llama"]),
    "recurrent": lambda: pairs(["llama", "rwkv"]),
    "different": lambda: [pair("llama"), pair("gpt2", 1, raw_bytes(), hidden_size=16)],
}


class Looker:
    """Records the look-ahead of every text; gives all weight to one member, then to the next."""

    lookahead_tokens = AHEAD

    def __init__(self, looks=True):
        self.looks = looks
        self.seen = {}

    def __call__(self, state):
        ahead = state.look_ahead(AHEAD) if self.looks else state.hidden_states
        for row, text in enumerate(state.text):
            self.seen.setdefault(text, []).append([mean[row].clone() for mean in ahead])
        speaker = (state.span_index + torch.tensor([len(text) for text in state.text])) % state.num_members
        return torch.nn.functional.one_hot(speaker, state.num_members).float()


def written(given, inputs, looks=True, **options):
    looker = Looker(looks)
    ensemble = endless(given, looker, span_length=4)
    torch.manual_seed(0)
    return ensemble, ensemble.generate(**inputs, max_new_tokens=11, **options), looker.seen


@torch.no_grad()
def expected_state(model, ids, ends=()):
    """The law: the mean of the model's own hidden states over the tokens of its own greedy continuation of `ids`."""
    states = []
    for _ in range(AHEAD):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1:].argmax(-1)])
        states.append(model(ids[None], output_hidden_states=True).hidden_states[-1][0, -1])
        if int(ids[-1]) in ends:
            break
    return torch.stack(states).mean(0)


def _close(one, other):
    return torch.allclose(one, other, atol=2e-4, rtol=1e-3)


CASES = [("same", mode) for mode in MODES] + [
    ("sliding", "greedy"),  # caches that cannot go back
    ("recurrent", "greedy"),  # states that cannot go back, and rows that are read one by one
    *slow(("recurrent", "beams"), ("sliding", "beams"), ("sliding", "looked up"), ("recurrent", "without cache")),
]


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_the_mean_over_what_each_member_writes_by_itself(kind, mode):
    given = KINDS[kind]()
    inputs = encode(*(TEXTS[:1] if mode == "looked up" else TEXTS))
    ensemble, sequences, seen = written(given, inputs, **MODES[mode])
    width, times = inputs["input_ids"].shape[1], len(sequences) // len(inputs["input_ids"])
    for row, ids in enumerate(sequences):
        own = ids[int((inputs["attention_mask"][row // times] == 0).sum()) :]
        for end in range(len(own) - (len(ids) - width), len(own), 4):
            found = seen[ensemble.tokenizer.decode(own[:end].tolist(), skip_special_tokens=True)]
            for index, (model, _) in enumerate(given):
                expected = expected_state(model, own[:end])
                assert any(_close(entry[index], expected) for entry in found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["same", "different", *slow("sliding", "recurrent")])
def test_the_text_is_the_same_as_without(kind, mode):
    """Law: bit-exactly, the logits too; the members' caches are not touched."""
    inputs = encode(*(TEXTS[:1] if mode == "looked up" else TEXTS))
    options = {**MODES[mode], "return_dict_in_generate": True, "output_logits": True}
    _, looking, _ = written(KINDS[kind](), inputs, **options)
    _, without, _ = written(KINDS[kind](), inputs, looks=False, **options)
    assert torch.equal(looking.sequences, without.sequences)
    for one, other in zip(looking.logits, without.logits, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "runner"), [("different", "slots"), ("different", "rows"), ("same", "slots"), ("sliding", "slots")]
)
@pytest.mark.parametrize("mode", ["greedy", "looked up", *slow("sampling", "beams", "without cache")])
def test_forcing_a_text_sees_what_writing_it_saw(mode, kind, runner, monkeypatch):
    """Law: the look-ahead depends on a row's text only: the same in a batch, and for each row by itself, forced."""
    if runner == "rows":
        monkeypatch.setattr("hf_rlae.ensemble.assembly.choose_runner", lambda member: RowRunner)
    given = KINDS[kind]()
    inputs = encode(*(TEXTS[:1] if mode == "looked up" else TEXTS))
    _, sequences, seen = written(given, inputs, **MODES[mode])
    monkeypatch.undo()
    width, times = inputs["input_ids"].shape[1], len(sequences) // len(inputs["input_ids"])
    for row, ids in enumerate(sequences):
        pads = int((inputs["attention_mask"][row // times] == 0).sum())
        looker = Looker()
        endless(given, looker, span_length=4)(ids[None, pads:-1], prompt_length=width - pads)
        for text, entries in looker.seen.items():
            for index, mean in enumerate(entries[0]):
                assert any(_close(entry[index], mean) for entry in seen[text])


def test_different_tokenizers_continue_their_own_prompts():
    """At the end of a prompt there is one reading without a tail: the member's own greedy continuation."""
    given = KINDS["different"]()
    ensemble, _, seen = written(given, encode(*TEXTS), do_sample=False)
    for text in TEXTS:
        for index, (model, tokenizer) in enumerate(given):
            ids = torch.tensor(tokenizer(text)["input_ids"])
            excluded = set(ensemble.engine.alignments[index].excluded_ids.tolist())
            expected = expected_state(model, ids)
            own = model(ids[None]).logits[0, -1].argmax()
            if int(own) not in excluded:
                assert _close(seen[text][0][index], expected)


@pytest.mark.parametrize("mode", ["sampling", *slow("greedy", "beams")])
@pytest.mark.parametrize("kind", ["same", "different", "recurrent"])
@pytest.mark.parametrize("rereads", [False, True])
def test_the_host_of_a_processor_looks_ahead_as_in_the_ensemble(kind, mode, rereads):
    given = KINDS[kind]()
    _, sequences, seen = written(given, encode(*TEXTS), **MODES[mode])
    looker = Looker()
    processor = EnsembleLogitsProcessor.from_members(
        given[0][0],
        [model for model, _ in given[1:]],
        tokenizers=[tokenizer for _, tokenizer in given],
        policy=looker,
        host_rereads=rereads,
        span_length=4,
        end_token_ids=[()] * len(given),
    )
    given[0][0].generation_config.eos_token_id = None
    torch.manual_seed(0)
    out = given[0][0].generate(**encode(*TEXTS), logits_processor=[processor], max_new_tokens=11, **MODES[mode])
    texts = TEXTS if kind == "different" else looker.seen
    assert kind == "different" or torch.equal(out, sequences)
    for text in texts:
        for index, mean in enumerate(looker.seen[text][0]):
            assert any(_close(entry[index], mean) for entry in seen[text])


def test_members_with_prompts_of_their_own():
    given = KINDS["same"]()
    looker = Looker()
    inputs, other = encode(TEXTS[0]), encode(TEXTS[0], TEXTS[1])
    endless(given, looker, span_length=2).generate(
        **inputs,
        member_input_ids=other["input_ids"][None],
        member_attention_mask=other["attention_mask"][None],
        max_new_tokens=1,
    )
    for index, (model, _) in enumerate(given):
        ids = other["input_ids"][index][other["attention_mask"][index].bool()]
        assert _close(looker.seen[TEXTS[0]][0][index], expected_state(model, ids))


def test_it_stops_at_an_end_token_and_at_the_end_of_the_context():
    [(model, tokenizer)] = pairs(["gpt2"])
    ids = encode(TEXTS[0])["input_ids"][0]
    with torch.no_grad():
        first = int(model(ids[None]).logits[0, -1].argmax())
    looker = Looker()
    endless([(model, tokenizer)], looker, end_token_ids=[[first]]).generate(**encode(TEXTS[0]), max_new_tokens=1)
    assert _close(looker.seen[TEXTS[0]][0][0], expected_state(model, ids, ends=[first]))
    limit = model.config.n_positions
    long = torch.randint(20, 300, (1, limit), generator=torch.Generator().manual_seed(0))
    for length, room in ((limit - 1, 1), (limit, 0)):
        states = []
        ensemble = endless(
            [(model, tokenizer)], lambda state, into=states: into.extend(state.look_ahead(AHEAD)) or torch.ones(1, 1)
        )
        with torch.no_grad():
            ensemble(long[:, :length], prompt_length=length)
            last = torch.cat([long[0, :length], model(long[:, :length]).logits[0, -1:].argmax(-1)])[:limit]
            state = model(last[None], output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(states[0][0], state * room, atol=2e-4, rtol=1e-3)


def test_a_policy_that_does_not_ask_pays_nothing():
    given = KINDS["same"]()
    models = [model for model, _ in given]
    with columns_read(*models) as calls:
        written(given, encode(*TEXTS), looks=False, do_sample=False)
    passes = [len(entry) for entry in calls]
    with columns_read(*models) as calls:
        written(given, encode(*TEXTS), do_sample=False)
    assert [len(entry) - before for entry, before in zip(calls, passes, strict=True)] == [3 * AHEAD] * 2, "three spans"
    assert all(width == 1 for entry in calls for width in entry[1 : 1 + AHEAD])


@pytest.mark.parametrize("kind", ["same", "different"])
def test_policies_observe_it_and_keep_it_when_saved(kind, tmp_path):
    given = KINDS[kind]()
    members = endless(given).members
    policy = PolicyModel(PolicyConfig.for_members(members, lookahead_tokens=AHEAD, span_length=4)).eval()
    ensemble = endless(given, policy, span_length=4)
    found = []
    hook = policy.register_forward_hook(lambda module, args, output: found.append(module.observe(args[0])))
    ensemble.generate(**encode(*TEXTS), max_new_tokens=2)
    hook.remove()
    _, _, seen = written(given, encode(*TEXTS), do_sample=False)
    for index in range(2):
        assert found[0][f"lookahead_{index}"].shape == (3, members[index].hidden_size)
        for text, mean in zip(TEXTS, found[0][f"lookahead_{index}"], strict=True):
            assert _close(mean, seen[text][0][index])
    policy.save_pretrained(tmp_path)
    again = PolicyModel.from_pretrained(tmp_path)
    assert again.lookahead_tokens == AHEAD
    assert_same_parameters(again, policy)
    changed = {**found[0], "lookahead_0": found[0]["lookahead_0"].flip(1)}
    assert not torch.equal(policy(changed, sample=False).weights, policy(found[0], sample=False).weights)


def test_policies_of_before_do_not_look_ahead():
    config = PolicyConfig.from_dict({k: v for k, v in PolicyConfig().to_dict().items() if k != "lookahead_tokens"})
    assert config.lookahead_tokens == 0
    policy = PolicyModel(PolicyConfig(member_hidden_sizes=[32, 48]))
    assert not [name for name in policy.state_dict() if "ahead" in name]
    assert "lookahead_0" not in policy.observe(random_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"lookahead_tokens": -1}, "lookahead_tokens=-1.*0 is for no look-ahead", id="negative"),
        pytest.param(
            {"lookahead_tokens": 2, "observation": "text"}, "it is the members that look ahead", id="text alone"
        ),
    ],
)
def test_configs_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**settings)


def test_states_that_cannot_look_ahead():
    with pytest.raises(PolicyError, match="made without `look_ahead`"):
        random_state().look_ahead(2)
    looker = Looker()
    looker.observes_members = False
    with pytest.raises(PolicyError, match=r"look_ahead\(3\).*`observes_members = False`"):
        endless(KINDS["same"](), looker).generate(**encode(TEXTS[0]), max_new_tokens=1)
