"""Members elsewhere: the same texts as members here, to the bit; what is sent; members that are lost."""

from __future__ import annotations

import copy
import gc
import itertools
import threading

import pytest
import torch

from hf_rlae import ConfigError, EnsembleForCausalLM, MemberError, PerplexityPolicy
from hf_rlae.errors import MemberLostError
from hf_rlae.members import Member, RemoteMember
from hf_rlae.members.remote import remote_member
from tests.support.ensembles import TEXTS, encode, policy_of_text
from tests.support.models import pair
from tests.support.remote_members import Loopback
from tests.support.remote_members import remote as remote_to
from tests.support.tokenizers import byte_level_bpe, chatml, instruct, raw_bytes

MEMBERS = {
    "llama": ("llama", 0, byte_level_bpe),
    "gpt2": ("gpt2", 1, byte_level_bpe),
    "rwkv": ("rwkv", 2, byte_level_bpe),  # rows are read separately
    "mamba": ("mamba", 3, byte_level_bpe),
    "bytes": ("gpt2", 4, raw_bytes),
    "chat": ("llama", 5, chatml),
    "instruct": ("gpt2", 6, instruct),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each member in a folder."""
    root, made = tmp_path_factory.mktemp("members"), {}
    for name, (architecture, seed, tokenizer) in MEMBERS.items():
        model, own = pair(architecture, seed, tokenizer())
        made[name] = str(root / name)
        model.save_pretrained(made[name])
        own.save_pretrained(made[name])
    return made


def observing(state):
    """Weights by how confident members are, and by their hidden states."""
    seen = torch.stack([hidden.float().mean(1) for hidden in state.hidden_states], dim=1)
    return (state.top_logps + seen).softmax(1)


def ahead(state):
    return torch.stack([hidden.float().mean(1) for hidden in state.look_ahead(3)], dim=1).softmax(1)


observing.pooled_tokens = 4

PAIRS = {
    "one tokenizer": ["llama", "gpt2"],
    "one tokenizer, a recurrent member": ["llama", "rwkv"],
    "different tokenizers": ["gpt2", "bytes"],
    "different tokenizers, a recurrent member": ["bytes", "mamba"],
}
CALLS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "do_sample": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "do_sample": False},
    "no cache": {"use_cache": False, "do_sample": False},
}
POLICIES = {
    "of the text": policy_of_text,
    "observes members": observing,
    "looks ahead": ahead,
    "scores prompts": PerplexityPolicy(),
}


def both(folders, names, policy=policy_of_text, log=None, **settings):
    """The same ensemble with members here and with remote ones."""
    here = [folders[name] for name in names]
    there = [remote_to(folders[name], log) for name in names]
    return [EnsembleForCausalLM.from_members(given, policy, span_length=3, **settings) for given in (here, there)]


def outputs(ensemble, *texts, seed=0, **options):
    inputs = ensemble.tokenizer(list(texts), return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    out = ensemble.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits, 1).nan_to_num(), out.span_weights


def assert_same(one, other):
    for got, expected in zip(one, other, strict=True):
        assert torch.equal(got, expected)


def sweep():
    """Recurrent members, one call in the fast tier: they read row by row, which takes long."""
    for (pair_id, names), (call_id, options) in itertools.product(PAIRS.items(), CALLS.items()):
        is_slow = "recurrent" in pair_id and call_id != "greedy"
        yield pytest.param(names, options, id=f"{pair_id}-{call_id}", marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(("names", "options"), sweep())
def test_remote_members_write_what_members_here_write(folders, names, options):
    here, there = both(folders, names)
    texts = TEXTS[:1] if "prompt_lookup_num_tokens" in options else TEXTS
    assert_same(outputs(there, *texts, **options), outputs(here, *texts, **options))


@pytest.mark.parametrize("names", [PAIRS["one tokenizer"], PAIRS["different tokenizers"]], ids=["one", "different"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_policies_see_the_same(folders, names, policy):
    here, there = both(folders, names, policy)
    assert_same(outputs(there, *TEXTS, do_sample=False), outputs(here, *TEXTS, do_sample=False))


def test_members_have_their_own_chat_prompts(folders):
    here, there = both(folders, ["chat", "instruct"])
    messages = [{"role": "user", "content": TEXTS[0]}]
    results = []
    for ensemble in (here, there):
        inputs = ensemble.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        results.append(ensemble.generate(**inputs, max_new_tokens=8, do_sample=False))
    assert torch.equal(*results)


def test_a_policy_that_picks_members_per_prompt(folders):
    def picking(state):
        return policy_of_text(state)

    picking.observes_members = False
    here, there = both(folders, ["llama", "gpt2"], picking, select="prompt", max_active_members=1)
    assert_same(outputs(there, *TEXTS, do_sample=False), outputs(here, *TEXTS, do_sample=False))


def test_scores_of_texts_and_the_gradients_of_weights(folders):
    here, there = both(folders, ["llama", "gpt2"])
    inputs = encode(*TEXTS)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    assert torch.equal(there(**inputs, labels=labels).loss, here(**inputs, labels=labels).loss)


def test_members_here_and_elsewhere_in_one_ensemble(folders):
    here, _ = both(folders, ["llama", "gpt2"])
    mixed = EnsembleForCausalLM.from_members(
        [folders["llama"], remote_to(folders["gpt2"])], policy_of_text, span_length=3
    )
    assert_same(outputs(mixed, *TEXTS, do_sample=False), outputs(here, *TEXTS, do_sample=False))


def test_a_copied_cache_continues_by_itself(folders):
    """As with `copy.deepcopy(past_key_values)` in transformers: a prompt's cache is used twice."""
    here, there = both(folders, ["llama", "bytes"])
    results = []
    for ensemble in (here, there):
        first = ensemble.tokenizer([TEXTS[0]], return_tensors="pt")["input_ids"]
        cache = ensemble(input_ids=first, prompt_length=first.shape[1]).past_key_values
        twin = copy.deepcopy(cache)
        more = first[:, -2:]
        results.append(
            [
                ensemble(input_ids=ids, past_key_values=kept).logits.nan_to_num()
                for ids, kept in (
                    (more, cache),
                    (more.flip(1), twin),
                    (more[:, :1], cache),
                )
            ]
        )
    assert_same(*results)


@pytest.mark.parametrize("names", [PAIRS["one tokenizer"], PAIRS["different tokenizers"]], ids=["one", "different"])
def test_two_threads_use_one_ensemble(folders, names):
    here, there = both(folders, names)
    expected = [outputs(here, text, do_sample=False) for text in TEXTS[:2]]
    found = [None, None]

    def run(index):
        found[index] = outputs(there, TEXTS[index], do_sample=False)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


# -- what is sent --------------------------------------------------------------------------------------------


def test_all_members_are_called_before_any_is_waited_for(folders):
    log = []
    _, there = both(folders, ["llama", "gpt2", "rwkv"], log=log)
    outputs(there, *TEXTS, do_sample=False)
    steps = [kind for kind, _ in log[-6:]]
    assert steps == ["call"] * 3 + ["wait"] * 3


class Meeting(Loopback):
    """A link that answers only when all members have been called."""

    barrier: threading.Barrier | None = None

    def wait(self, call, timeout):
        if self.barrier is not None:
            self.barrier.wait(20)
        return super().wait(call, timeout)


def test_members_with_different_tokenizers_are_called_before_any_is_waited_for(folders):
    members = [RemoteMember.load(folders[name], link=Meeting) for name in ("gpt2", "bytes")]
    ensemble = EnsembleForCausalLM.from_members(members)
    barrier = threading.Barrier(2)
    for member in members:
        member.link.barrier = barrier  # breaks, and raises, if one member is waited for before the other is called
    inputs = ensemble.tokenizer([TEXTS[0]], return_tensors="pt")
    ensemble.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert not barrier.broken


def test_a_step_sends_new_ids_and_gets_one_vector_per_row_in_the_dtype_of_the_head(folders):
    member = remote_to(folders["llama"], dtype=torch.bfloat16)
    ensemble = EnsembleForCausalLM.from_members([member, remote_to(folders["gpt2"])])
    inputs = encode(*TEXTS)
    counts = []
    for tokens in (3, 4):
        member.bytes_sent = member.bytes_received = 0
        ensemble.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        counts.append((member.bytes_sent, member.bytes_received))
    rows = len(TEXTS)
    # ids in 4 bytes and the mask in 1; bfloat16 in 2 bytes
    assert counts[1][0] - counts[0][0] == rows * (4 + 1)
    assert counts[1][1] - counts[0][1] == rows * member.vocab_size * 2


def test_the_worker_drops_texts_that_have_ended(folders):
    _, there = both(folders, ["llama", "gpt2"])
    for _ in range(3):
        outputs(there, TEXTS[0], do_sample=False)
        gc.collect()
    assert len(there.members[0].link.worker._host.sessions) == 1  # the last one, until the next message


def test_a_sample_of_a_member_has_its_shapes_and_dtype(folders):
    member = remote_to(folders["llama"], dtype=torch.bfloat16)
    member.connect()
    assert (member.dtype, member.worker.dtype) == (torch.bfloat16, "bfloat16")
    assert all(parameter.is_meta for parameter in member.model.parameters())


# -- handshake -----------------------------------------------------------------------------------------------


class Elsewhere(Loopback):
    """A link to a worker that reads another folder: the wrong model."""

    folder = ""

    def call(self, method, *arguments):
        return super().call(method, *((self.folder, *arguments[1:]) if method == "load" else arguments))


@pytest.mark.parametrize("other", ["gpt2", "chat"], ids=["another config", "another vocabulary"])
def test_a_worker_with_another_model_is_refused(folders, other):
    link = type("Other", (Elsewhere,), {"folder": folders[other]})
    member = RemoteMember.load(folders["llama"], link=link)
    with pytest.raises(MemberError, match=f"member {folders['llama']}: the worker on .* another config or vocabulary"):
        EnsembleForCausalLM.from_members([member])
    assert member.link.is_closed


def test_a_worker_with_another_version_is_refused(folders, monkeypatch):
    member = remote_to(folders["llama"])
    found = remote_member.versions()
    monkeypatch.setattr(remote_member, "versions", lambda: {**found, "hf_rlae": "0.0.1"})
    with pytest.raises(MemberError, match=r"has hf_rlae .* and this process has 0\.0\.1; install the same version"):
        member.connect()


def test_errors_of_the_worker_keep_their_type(folders, tmp_path):
    member = RemoteMember.load(folders["llama"], link=type("Gone", (Elsewhere,), {"folder": str(tmp_path / "none")}))
    with pytest.raises(MemberError, match="none"):
        member.connect()


# -- members that are lost -----------------------------------------------------------------------------------

FAULTS = {
    "late": (TimeoutError(), r"the worker of member .*gpt2 has not answered within 120 s"),
    "dead": (ConnectionError("The actor died."), r"the worker of member .*gpt2 has ended \(The actor died\.\)"),
}


def losing(folders, first, fault, after, **settings):
    """An ensemble of a member here and a remote one, which is lost after some calls."""
    member = remote_to(folders["gpt2"])
    ensemble = EnsembleForCausalLM.from_members([folders[first], member], policy_of_text, span_length=3, **settings)
    member.link.fault, member.link.after = fault, after
    return ensemble, member


@pytest.mark.parametrize("first", ["llama", "bytes"], ids=["one tokenizer", "different tokenizers"])
@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("after", [0, 3], ids=["prefill", "decode"])
def test_a_lost_member_is_named(folders, first, fault, message, after):
    ensemble, member = losing(folders, first, fault, after)
    with pytest.raises(MemberLostError, match=message):
        outputs(ensemble, *TEXTS, do_sample=False)
    with pytest.raises(MemberLostError, match="restart"):  # at once, not after another limit
        outputs(ensemble, *TEXTS, do_sample=False)
    member.restart()
    here, _ = both(folders, [first, "gpt2"])
    assert_same(outputs(ensemble, *TEXTS, do_sample=False), outputs(here, *TEXTS, do_sample=False))


@pytest.mark.parametrize("first", ["llama", "bytes"], ids=["one tokenizer", "different tokenizers"])
@pytest.mark.parametrize("policy", [policy_of_text, observing, ahead], ids=["text", "observes", "looks ahead"])
def test_without_a_lost_member_the_others_go_on(folders, first, policy):
    ensemble, _ = losing(folders, first, TimeoutError(), 0, on_lost_member="drop")
    ensemble.set_policy(policy)
    alone = EnsembleForCausalLM.from_members([folders[first]])
    options = {"do_sample": False, "min_new_tokens": 6}
    found, _, weights = outputs(ensemble, TEXTS[0], **options)
    expected, _, _ = outputs(alone, TEXTS[0], **options)
    assert ensemble.tokenizer.decode(found[0]) == alone.tokenizer.decode(expected[0])
    assert weights.nan_to_num()[..., 1].sum() == 0
    # in decode: the text goes on to its end
    ensemble, _ = losing(folders, first, ConnectionError("killed"), 4, on_lost_member="drop")
    assert outputs(ensemble, *TEXTS, **options)[1].isfinite().any(-1).all()


def test_with_all_members_lost_the_call_ends(folders):
    members = [remote_to(folders[name]) for name in ("llama", "gpt2")]
    for first in (members, [remote_to(folders["bytes"]), remote_to(folders["gpt2"])]):
        ensemble = EnsembleForCausalLM.from_members(first, on_lost_member="drop")
        for member in first:
            member.link.fault, member.link.after = ConnectionError("killed"), 2
        with pytest.raises(MemberLostError, match="killed"):
            outputs(ensemble, *TEXTS, do_sample=False, min_new_tokens=6)


# -- options -------------------------------------------------------------------------------------------------

REFUSED = [
    ({"placement": "rai"}, r"placement='rai'.*ray", "an unknown place"),
    ({"placement": ["ray"]}, "placement has 1 entries for 2 members", "one entry too few"),
    ({"resources": [{"num_gpus": 1}, None]}, r"resources\[0\].*set placement='ray'", "resources of a local member"),
    ({"on_lost_member": "wait"}, "on_lost_member", "an unknown action"),
]


@pytest.mark.parametrize(("options", "message"), [row[:2] for row in REFUSED], ids=[row[2] for row in REFUSED])
def test_refused_options(folders, options, message):
    with pytest.raises(ConfigError, match=message):
        EnsembleForCausalLM.from_members([folders["llama"], folders["gpt2"]], **options)


def test_a_loaded_model_is_not_sent_to_a_worker(folders):
    with pytest.raises(ConfigError, match="member 0 is loaded already; give its folder or Hub id"):
        EnsembleForCausalLM.from_members([pair()], placement="ray")


def test_without_ray_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setattr(remote_member, "missing_packages", lambda what, *_: f"{what} needs ray: install the extra")
    with pytest.raises(ConfigError, match="a remote member needs ray"):
        EnsembleForCausalLM.from_members([folders["llama"]], placement="ray")


def test_invalid_limits(folders):
    with pytest.raises(ConfigError, match="timeout must be a number of seconds above 0, got 0"):
        remote_to(folders["llama"], timeout=0)


def test_the_dtype_of_a_remote_member_is_that_of_its_loading(folders):
    ensemble = EnsembleForCausalLM.from_members([remote_to(folders["llama"])])
    with pytest.raises(ConfigError, match=r"dtype of remote member .* give dtype='bfloat16'"):
        ensemble.to(torch.bfloat16)
    assert ensemble.to("cpu").device.type == "cpu"


def test_an_ensemble_of_remote_members_is_saved_by_their_places(folders, tmp_path):
    _, there = both(folders, ["llama", "gpt2"])
    there.set_policy(None)
    there.save_pretrained(tmp_path)
    again = EnsembleForCausalLM.from_pretrained(
        tmp_path, allow_outside=True, members=[folders["llama"], folders["gpt2"]]
    )
    assert_same(outputs(again, TEXTS[0], do_sample=False), outputs(there, TEXTS[0], do_sample=False))
    with pytest.raises(ConfigError, match=r"save_members=True: member 0 .* is remote"):
        there.save_pretrained(tmp_path, save_members=True)


# -- training ------------------------------------------------------------------------------------------------


def test_a_policy_learns_the_same(folders, tmp_path):
    pytest.importorskip("trl", reason="TRL is not installed (pip install 'hf_rlae[train]')")
    from tests.support.rlae import assert_same as assert_same_parameters
    from tests.support.rlae import ensemble_of, parameters_of, trainer_of

    trained = []
    for load in (Member.load, remote_to):
        ensemble = ensemble_of(given=[load(folders[name]) for name in ("llama", "gpt2")])
        before = parameters_of(ensemble.policy)
        trainer_of(tmp_path / load.__name__, ensemble=ensemble, max_steps=2).train()
        trained.append(parameters_of(ensemble.policy))
    assert any(not torch.equal(before[name], value) for name, value in trained[0].items())
    assert_same_parameters(*trained)
