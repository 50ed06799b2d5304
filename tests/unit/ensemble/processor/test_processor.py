"""The ensemble in the plain `generate` of its first member, compared with the ensemble itself."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
from functools import cache

import pytest
import torch
from transformers import LogitsProcessor, MaxLengthCriteria, NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor
from transformers.generation import utils as generation_utils

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, StaticPolicy
from hf_rlae.errors import ConfigError, HfRlaeError, InputError, PolicyError, TokenizerError
from tests.support.ensembles import TEXTS, Recorder, Schedule, columns_read, encode, endless, policy_of_text
from tests.support.models import constant, pair, pairs, with_adapters
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe, characters, raw_bytes, sentencepiece_bpe, unigram

OUTPUTS = {"return_dict_in_generate": True, "output_scores": True}
GREEDY = {"do_sample": False, "max_new_tokens": 8}
MODES = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled_beams": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


def policy_of_members(state):
    """Weights from the members' last hidden states and entropies."""
    shown = torch.stack([hidden.float().mean(-1) for hidden in state.hidden_states], dim=1)
    return (shown + state.entropies / 10).softmax(1)


@cache
def same():
    """Three members with one tokenizer."""
    return pairs(["llama", "gpt2", "gemma3"])


@cache
def different(first=byte_level_bpe, second=raw_bytes):
    """Three members with different tokenizers; the first and the last share theirs."""
    return [pair("llama", 0, first()), pair("gpt2", 1, second()), pair("qwen2", 2, first())]


MEMBERS = {"one_tokenizer": same, "two_tokenizers": different}


def processor_of(members, policy=policy_of_text, **options):
    models = [model for model, _ in members]
    tokenizers = [tokenizer for _, tokenizer in members]
    options.setdefault("span_length", 3)
    return EnsembleLogitsProcessor.from_members(models[0], models[1:], tokenizers=tokenizers, policy=policy, **options)


def seeded(generate, *args, **kwargs):
    torch.manual_seed(0)
    return generate(*args, **kwargs)


def assert_same_scores(got, expected):
    """Equal within 1e-5, with NaN in the same places."""
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours == -torch.inf, theirs == -torch.inf)
        defined = theirs > -torch.inf
        torch.testing.assert_close(ours[defined], theirs[defined], atol=1e-5, rtol=0)


class Spy(LogitsProcessor):
    """A logits processor that records texts and scores."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append((input_ids.clone(), scores.clone()))
        return scores


# One shared tokenizer


@pytest.mark.parametrize("use_cache", [True, *slow(False)], ids=["cache", "no_cache"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", [policy_of_text, policy_of_members], ids=["text", "members"])
def test_one_tokenizer_equals_the_ensemble(policy, mode, use_cache):
    """Law: with one shared tokenizer, tokens and scores are those of `EnsembleForCausalLM`, in a padded batch."""
    options = {"max_new_tokens": 10, "use_cache": use_cache, "eos_token_id": None, **MODES[mode], **OUTPUTS}
    ensemble = EnsembleForCausalLM.from_members(same(), policy, span_length=3)
    expected = seeded(ensemble.generate, **encode(*TEXTS), **options)
    processor = processor_of(same(), policy)
    got = seeded(same()[0][0].generate, **encode(*TEXTS), **options, logits_processor=[processor])
    assert torch.equal(got.sequences, expected.sequences)
    assert_same_scores(got.scores, expected.scores)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("settings", [{"mixing": "log"}, {"min_weight": 0.3}, {"max_active_members": 1}])
def test_settings_of_the_ensemble(settings, mode):
    """Law: the same with every setting, even if the host has no weight."""
    policy = Schedule([0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.6, 0.0, 0.4])
    options = {"max_new_tokens": 10, "eos_token_id": None, **MODES[mode], **OUTPUTS}
    ensemble = EnsembleForCausalLM.from_members(same(), policy, span_length=2, **settings)
    expected = ensemble.generate(**encode(*TEXTS), **options)
    processor = processor_of(same(), policy, span_length=2, **settings)
    got = same()[0][0].generate(**encode(*TEXTS), **options, logits_processor=[processor])
    assert torch.equal(got.sequences, expected.sequences)
    assert_same_scores(got.scores, expected.scores)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2", "gemma3", "mamba"])
def test_hosts_of_every_kind(architecture):
    """Law: the same for every architecture of the host."""
    members = [pair(architecture, 3), same()[0]]
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_members, span_length=3)
    expected = ensemble.generate(**encode(TEXTS[0]), **GREEDY, **OUTPUTS)
    processor = processor_of(members, policy_of_members)
    got = members[0][0].generate(**encode(TEXTS[0]), **GREEDY, **OUTPUTS, logits_processor=[processor])
    assert torch.equal(got.sequences, expected.sequences)
    assert_same_scores(got.scores, expected.scores)


def test_a_wider_member():
    """Ids that only another member has are left out, and the rest is renormalised."""
    members = [pair("llama", 0), pair("gpt2", 1, vocab_size=352)]
    ensemble = EnsembleForCausalLM.from_members(members)
    spy = Spy()
    members[0][0].generate(
        **encode(*TEXTS), **GREEDY, num_beams=2, logits_processor=[processor_of(members, None, span_length=8), spy]
    )
    for ids, scores in spy.seen[:1]:
        mask = encode(*TEXTS)["attention_mask"].repeat_interleave(2, 0)
        with torch.no_grad():
            expected = ensemble(ids, attention_mask=mask, prompt_length=ids.shape[1]).logits[:, -1, :330]
        torch.testing.assert_close(scores, expected.log_softmax(-1), atol=1e-5, rtol=0)


def test_the_same_model_twice():
    """The host can be another member, too: its passes as a member are not used as passes of the host."""
    members = [same()[0], same()[0], same()[1]]
    expected = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3).generate(
        **encode(*TEXTS), **GREEDY
    )
    got = members[0][0].generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor_of(members)])
    assert torch.equal(got, expected)


# Different tokenizers


class Restriction:
    """The ensemble's mass on the host's tokens, by a direct implementation of the rule."""

    any_path = False

    def __init__(self, members, policy, **settings):
        self.ensemble = EnsembleForCausalLM.from_members(members, policy, **settings)
        self.host = self.ensemble.members[0]
        self.pieces = self.ensemble.engine.vocabularies[0].pieces
        self.places = {}
        self.caches = {}

    def place(self, piece):
        """The longest token of the host that is a prefix of a piece."""
        if piece not in self.places:
            fits = [own for own in self.pieces if own and piece.startswith(own)]
            self.places[piece] = self.ensemble.union.id_of[max(fits, key=len)] if fits else None
        return self.places[piece]

    def follows_the_columns(self, cache, ids):
        """Whether the host's own readings have the ids of the text.

        The ensemble may read the text in other ids of the host, which `generate` cannot do.
        """
        readings = [own for own, _, _, _ in cache.runs[0].readings(0)]
        return all(own == tuple(ids[: len(own)]) for own in readings)

    def __call__(self, ids, start):
        """Log-probabilities over the host's vocabulary after `ids`, a row without padding; `None` if not comparable."""
        if any(self.pieces[i] is None for i in ids[start:].tolist()):
            return None
        text = tuple(ids.tolist())
        # continues from the state of the previous text, if no other row has
        cache, read = self.caches.pop((start, text[:-1]), None) or (self.ensemble.new_cache(), 0)
        for column in range(max(start, read + 1), len(ids) + 1):
            piece = ids[None, :start] if column == start else ids[None, column - 1 : column]
            with torch.no_grad():
                out = self.ensemble(piece, past_key_values=cache, prompt_length=start)
            if not self.any_path and not self.follows_the_columns(cache, text):
                return None
        self.caches[start, text] = cache, len(ids)
        logits = out.logits[0, -1]
        probs = logits.double().softmax(-1).tolist()
        result = torch.zeros(self.host.vocab_size, dtype=torch.float64)
        for u, p in enumerate(probs):
            piece = self.ensemble.union.pieces[u]
            if u == self.ensemble.union.stop_id:
                result[self.host.end_ids[0]] += p
            elif p > 0 and u < len(self.pieces) and u not in self.host.end_ids:
                result[u] += p
            elif p > 0 and piece and self.place(piece) is not None:
                result[self.place(piece)] += p
        return (result / result.sum()).log()


TOKENIZERS = {
    "longer_tokens": (byte_level_bpe, raw_bytes),
    "shorter_tokens": (raw_bytes, sentencepiece_bpe),
    "fewer_characters": (characters, byte_level_bpe),
    "pieces": (unigram, byte_level_bpe),
    "several_ids_for_one_byte": (sentencepiece_bpe, raw_bytes),
}


@pytest.mark.parametrize("host_rereads", [False, True], ids=["columns", "rereads"])
@pytest.mark.parametrize("mode", ["beams", *slow("greedy", "sample")])
@pytest.mark.parametrize(
    "tokenizers",
    ["longer_tokens", "shorter_tokens", "fewer_characters", *slow("pieces", "several_ids_for_one_byte")],
)
def test_the_mixture_restricted_to_the_host(tokenizers, mode, host_rereads):
    """Law: every row of every step = the ensemble's distribution after that text, restricted and renormalised."""
    members = different(*TOKENIZERS[tokenizers])
    host, tokenizer = members[0]
    # readings near the threshold could be dropped in one of the two only
    settings = {"span_length": 3, "min_reading": 0.0, "max_readings": 16}
    reference = Restriction(members, policy_of_text, **settings)
    reference.any_path = host_rereads
    spy = Spy()
    inputs = encode(TEXTS[0], "the dogs", tokenizer=tokenizer)
    options = {**MODES[mode], "max_new_tokens": 7, "eos_token_id": None}
    seeded(
        host.generate,
        **inputs,
        **options,
        logits_processor=[processor_of(members, host_rereads=host_rereads, **settings), spy],
    )
    assert len(spy.seen) == 7
    width = inputs["input_ids"].shape[1]
    compared = 0
    for ids, scores in spy.seen:
        pads = (inputs["attention_mask"] == 0).sum(1).repeat_interleave(len(ids) // 2)
        for row, pad in enumerate(pads.tolist()):
            expected = reference(ids[row, pad:], width - pad)
            if expected is None:
                continue
            compared += 1
            got = scores[row].double().log_softmax(-1)
            torch.testing.assert_close(got.exp(), expected.exp(), atol=1e-5, rtol=0)
            likely = expected > -8
            torch.testing.assert_close(got[likely], expected[likely], atol=1e-4, rtol=0)
            if mode == "beams":
                torch.testing.assert_close(scores[row].exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert compared >= 4 * len(spy.seen[0][0])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_batch_is_its_rows(name):
    """Law: rows padded on the left generate the same text as alone."""
    members = MEMBERS[name]()
    host, processor = members[0][0], processor_of(members, policy_of_members)
    together = host.generate(**encode(*TEXTS), **GREEDY, eos_token_id=None, logits_processor=[processor])
    for row, text in enumerate(TEXTS):
        alone = host.generate(**encode(text), **GREEDY, eos_token_id=None, logits_processor=[processor])
        assert together[row, -8:].tolist() == alone[0, -8:].tolist()


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_the_host_needs_no_cache(mode):
    """Law: `use_cache=False` changes nothing with different tokenizers, either."""
    host, processor = different()[0][0], processor_of(different())
    options = {"max_new_tokens": 8, **MODES[mode]}
    cached = host.generate(**encode(*TEXTS), **options, logits_processor=[processor])
    assert torch.equal(
        cached, host.generate(**encode(*TEXTS), **options, use_cache=False, logits_processor=[processor])
    )


def test_a_sure_member_ends_the_text():
    """STOP becomes the host's most likely end token, and this token ends the text."""
    tokenizer, other = byte_level_bpe(), raw_bytes()
    logits = torch.zeros(len(other))
    logits[other.eos_token_id] = 30.0
    own = torch.zeros(len(tokenizer))
    own[[7, 9]] = torch.tensor([-3.0, -2.0])
    members = [constant(own, tokenizer), constant(logits, other)]
    host = members[0][0]
    host.generation_config.eos_token_id = [7, 9]
    processor = processor_of(members, StaticPolicy([0.1, 0.9]), end_token_ids=[[7, 9, 11], None])
    out = host.generate(**encode(TEXTS[0]), **GREEDY, logits_processor=[processor])
    assert out[0, -1] == 9
    assert out.shape[1] == encode(TEXTS[0])["input_ids"].shape[1] + 1
    spy = Spy()
    host.generate(**encode(TEXTS[0]), max_new_tokens=1, do_sample=False, logits_processor=[processor, spy])
    scores = spy.seen[0][1][0]
    assert scores[7] == scores[11] == scores[tokenizer.eos_token_id] == -torch.inf


# Other processors


@pytest.mark.parametrize("mode", ["greedy", "beams", "sample"])
@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[40], [41], [70]]},
        {"min_new_tokens": 6},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(0, 300, 2))},
        {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(50, 90))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_ruled_out_stays_so(options, mode, caplog):
    """Law: options that rule tokens out act on the host's `generate` as on the ensemble's."""
    options = {**MODES[mode], **options, "max_new_tokens": 8, **OUTPUTS}
    ensemble = EnsembleForCausalLM.from_members(same(), policy_of_text, span_length=3)
    expected = seeded(ensemble.generate, **encode(*TEXTS), **options)
    processor = processor_of(same())
    got = seeded(same()[0][0].generate, **encode(*TEXTS), **options, logits_processor=[processor])
    assert torch.equal(got.sequences, expected.sequences)
    assert_same_scores(got.scores, expected.scores)
    assert not caplog.records


def test_ruled_out_with_different_tokenizers():
    """Scores of -inf stay -inf; if no other token is possible for the ensemble, the host's scores stay."""
    host, processor = different()[0][0], processor_of(different())
    allowed = list(range(50, 90))
    spy = Spy()
    host.generate(
        **encode(*TEXTS),
        **GREEDY,
        prefix_allowed_tokens_fn=lambda batch, ids: allowed,
        logits_processor=[processor, spy],
    )
    for _, scores in spy.seen:
        assert torch.isfinite(scores).any(1).all()
        scores[:, allowed] = -torch.inf
        assert (scores == -torch.inf).all()
    special = pair("llama", 0, sentencepiece_bpe())
    processor = processor_of([special, different()[1]])
    out = special[0].generate(
        **encode(TEXTS[0], tokenizer=special[1]),
        **GREEDY,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda batch, ids: [1],
        logits_processor=[processor],
    )
    assert out[0, -8:].tolist() == [1] * 8


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_changed_scores_are_warned_of(mode, caplog):
    """A repetition penalty before the processor logs one warning per call; after it, it acts on the ensemble."""
    host, processor = same()[0][0], processor_of(same())
    options = {**MODES[mode], "max_new_tokens": 8}
    host.generate(**encode(*TEXTS), **options, repetition_penalty=1.5, logits_processor=[processor])
    assert len(caplog.records) == 1
    for word in ("repetition_penalty", "put the processor first", "logits_processor=[processor"):
        assert word in caplog.text
    host.generate(**encode(*TEXTS), **options, sequence_bias={(40,): 3.0}, logits_processor=[processor])
    assert len(caplog.records) == 2
    behind = [processor, RepetitionPenaltyLogitsProcessor(1.5)]
    got = host.generate(**encode(*TEXTS), **options, logits_processor=behind)
    ensemble = EnsembleForCausalLM.from_members(same(), policy_of_text, span_length=3)
    expected = ensemble.generate(**encode(*TEXTS), **options, logits_processor=[RepetitionPenaltyLogitsProcessor(1.5)])
    assert torch.equal(got, expected)
    assert len(caplog.records) == 2


# The host and the policy


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("name", MEMBERS)
def test_the_host_is_not_run_twice(name, mode):
    """Law: the host reads the same ids as in a plain `generate`, for any observation of the policy."""
    members = MEMBERS[name]()
    host, processor = members[0][0], processor_of(members, policy_of_members)
    options = {"max_new_tokens": 6, "eos_token_id": None, **MODES[mode]}
    with columns_read(host) as plain:
        host.generate(**encode(*TEXTS), **options)
    with columns_read(host) as calls:
        host.generate(**encode(*TEXTS), **options, logits_processor=[processor])
    assert calls == plain


@pytest.mark.parametrize("first", [raw_bytes, byte_level_bpe])
def test_a_host_that_rereads_is_run_only_where_it_must(first):
    """Law: with `host_rereads`, a host whose text has only one tokenisation does not run twice."""
    members = different(first, sentencepiece_bpe)
    host, tokenizer = members[0]
    processor = processor_of(members, policy_of_members, host_rereads=True)
    inputs = encode(*TEXTS, tokenizer=tokenizer)
    with columns_read(host) as calls:
        host.generate(**inputs, **GREEDY, eos_token_id=None, logits_processor=[processor])
    assert len(calls[0]) == 8 or first is not raw_bytes


@pytest.mark.parametrize("name", MEMBERS)
def test_what_the_policy_sees(name):
    """Law: at every span the policy observes the same text, scores and hidden states as in the ensemble."""
    members = MEMBERS[name]()

    def watch(seen):
        def policy(state):
            seen.append(
                (state.text, state.span_index.tolist(), [h.clone() for h in state.hidden_states], state.entropies)
            )
            return policy_of_text(state)

        return policy

    ours, theirs = [], []
    out = members[0][0].generate(
        **encode(*TEXTS), **GREEDY, eos_token_id=None, logits_processor=[processor_of(members, watch(ours))]
    )
    ensemble = EnsembleForCausalLM.from_members(members, watch(theirs), span_length=3)
    mask = torch.nn.functional.pad(encode(*TEXTS)["attention_mask"], (0, 8), value=1)
    with torch.no_grad():
        ensemble(out[:, :-1], attention_mask=mask[:, :-1], prompt_length=out.shape[1] - 8)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip([*one[2], one[3]], [*other[2], other[3]], strict=True):
            torch.testing.assert_close(mine, its, atol=1e-3, rtol=0)


def test_every_call_starts_with_a_call_of_the_policy():
    """Law: a call that continues the text of the last call starts with a first span."""
    recorder = Recorder()
    host, processor = same()[0][0], processor_of(same(), recorder, span_length=4)
    ids = encode(TEXTS[0])["input_ids"]
    for _ in range(3):
        ids = host.generate(ids, max_new_tokens=1, do_sample=False, logits_processor=[processor], eos_token_id=None)
    assert [[span for span, _ in call] for call in recorder.asked] == [[0], [0], [0]]


# Calls


@pytest.mark.parametrize("name", MEMBERS)
def test_many_calls(name):
    """Law: a call on a used object = the same call on a new object."""
    members = MEMBERS[name]()
    host, processor = members[0][0], processor_of(members, policy_of_members)
    calls = [(TEXTS, mode) for mode in MODES] + [(TEXTS[:1], "greedy"), (TEXTS[1:], "beams"), (TEXTS, "greedy")]
    for texts, mode in calls:
        options = {"max_new_tokens": 7, **MODES[mode]}
        got = seeded(host.generate, **encode(*texts), **options, logits_processor=[processor])
        fresh = processor_of(members, policy_of_members)
        assert torch.equal(got, seeded(host.generate, **encode(*texts), **options, logits_processor=[fresh]))


@pytest.mark.parametrize("name", MEMBERS)
def test_two_threads(name):
    """Law: concurrent calls of two threads on one object equal the same calls in sequence."""
    members = MEMBERS[name]()
    host, processor = members[0][0], processor_of(members, policy_of_members)
    inputs = [encode(text) for text in TEXTS]
    expected = [host.generate(**entry, **GREEDY, logits_processor=[processor]) for entry in inputs]
    equal, errors = [0, 0], []
    start = threading.Barrier(2)

    def work(thread):
        start.wait()
        for call in range(12):
            which = (call + thread) % len(inputs)
            try:
                got = host.generate(**inputs[which], **GREEDY, logits_processor=[processor])
                equal[thread] += torch.equal(got, expected[which])
            except Exception as error:
                errors.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not errors
    assert equal == [12, 12]


class Failure(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize("where", ["policy", "processor", "member"])
@pytest.mark.parametrize("name", MEMBERS)
def test_an_exception_in_the_middle(name, where):
    """Law: a call that failed half way does not change the next call."""
    members = MEMBERS[name]()
    host = members[0][0]
    failing = [False]

    def fail(*args):
        if failing[0] and len(asked) > 1:
            raise Failure

    asked = []

    def policy(state):
        asked.append(state.span_index)
        if where == "policy":
            fail()
        return policy_of_members(state)

    class Behind(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if where == "processor":
                fail()
            return scores

    processor = processor_of(members, policy)
    behind = [processor, Behind()]
    expected = host.generate(**encode(*TEXTS), **GREEDY, logits_processor=behind)
    handle = members[1][0].register_forward_pre_hook(lambda *args: fail() if where == "member" else None)
    asked.clear()
    failing[0] = True
    with pytest.raises(Failure):
        host.generate(**encode(*TEXTS), **GREEDY, logits_processor=behind)
    handle.remove()
    failing[0] = False
    assert torch.is_grad_enabled() is True
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(host.generate(**encode(*TEXTS), **GREEDY, logits_processor=behind), expected)


def test_the_members_caches_go_with_the_call():
    """After `generate`, the caches of its members are freed."""
    host, processor = same()[0][0], processor_of(same())
    host.generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor])
    gc.collect()
    assert processor._of_thread().call is None


def test_hooks_go_with_the_processor():
    """The host has hooks as long as the processor exists; copies of the host are plain models."""
    model, tokenizer = pair("llama", 5)
    plain = model.generate(**encode(*TEXTS), **GREEDY)

    def hooks(of):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in of.modules())

    assert hooks(model) == 0
    processor = processor_of([(model, tokenizer), same()[1]])
    assert torch.equal(model.generate(**encode(*TEXTS), **GREEDY), plain)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.generate(**encode(*TEXTS), **GREEDY), plain)
        with pytest.raises(InputError):
            twin.generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor])
    del processor
    gc.collect()
    assert hooks(model) == 0


def test_padding():
    """A given mask is used; if the host gets another kind of mask, leading padding ids are padding."""
    host, processor = same()[0][0], processor_of(same())
    inputs = encode(*TEXTS)
    expected = host.generate(**inputs, **GREEDY, logits_processor=[processor])
    given = processor_of(same(), attention_mask=inputs["attention_mask"])
    assert torch.equal(host.generate(**inputs, **GREEDY, logits_processor=[given]), expected)
    beams = host.generate(**inputs, **GREEDY, num_beams=2, logits_processor=[processor])
    assert torch.equal(host.generate(**inputs, **GREEDY, num_beams=2, logits_processor=[given]), beams)
    static = host.generate(**inputs, **GREEDY, cache_implementation="static", logits_processor=[processor])
    assert torch.equal(static, expected)


def test_a_peft_host(request):
    """A PEFT model as the host uses its active adapter."""
    model = with_adapters(pair("llama")[0])
    other, tokenizer = same()[1]
    processor = EnsembleLogitsProcessor.from_members(model, [other], tokenizers=[tokenizer, tokenizer])
    for name in ("one", "two"):
        model.set_adapter(name)
        ensemble = EnsembleForCausalLM.from_members([(model, tokenizer), (other, tokenizer)])
        expected = ensemble.generate(**encode(*TEXTS), **GREEDY)
        assert torch.equal(model.generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor]), expected)


def test_an_ensemble_that_is_there():
    """The processor can be made from an ensemble."""
    ensemble = EnsembleForCausalLM.from_members(same(), policy_of_text, span_length=3)
    expected = ensemble.generate(**encode(*TEXTS), **GREEDY)
    processor = EnsembleLogitsProcessor(ensemble)
    assert torch.equal(same()[0][0].generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor]), expected)


# Bad input


def refused(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(words))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_tokenizers(count):
    models = [model for model, _ in same()]
    with refused(ConfigError, "tokenizers", f"{count} entries", "3 members"):
        EnsembleLogitsProcessor.from_members(models[0], models[1:], tokenizers=[byte_level_bpe()] * count)


def test_what_cannot_be_built():
    model, tokenizer = same()[0]
    with refused(TokenizerError, "belongs to another model"):
        EnsembleLogitsProcessor.from_members(model, [model], tokenizers=[tokenizer, byte_level_bpe(400)])
    with refused(ConfigError, "others", "list"):
        EnsembleLogitsProcessor.from_members(model, model, tokenizers=[tokenizer, tokenizer])
    with refused(ConfigError, "span_lenght", "span_length"):
        processor_of(same(), span_lenght=3)
    with refused(ConfigError, "draw", "leave draw out"):
        processor_of(same(), draw="token")
    with refused(ConfigError, "weighs 2 members"):
        processor_of(same(), StaticPolicy([1, 1]))
    adapted = with_adapters(pair("llama")[0])
    with refused(ConfigError, "adapter_names", "set_adapter"):
        EnsembleLogitsProcessor.from_members(
            adapted, [model], tokenizers=[tokenizer, tokenizer], adapter_names=["one", None]
        )


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": True}])
def test_assisted_decoding(options):
    host, processor = same()[0][0], processor_of(same())
    if "assistant_model" in options:
        options = {"assistant_model": same()[1][0]}
    inputs = encode("the dogs ran, the dogs ran, the dogs ran, the dogs")
    with refused(InputError, "scores", "assisted decoding"):
        host.generate(**inputs, **GREEDY, **options, logits_processor=[processor])


def test_another_model_calls():
    processor = processor_of(same())
    with refused(InputError, "scores", "the model it was built for"):
        same()[1][0].generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor])
    same()[0][0](**encode(*TEXTS))
    with refused(InputError, "scores", "the model it was built for"):
        different()[1][0].generate(**encode(*TEXTS, tokenizer=raw_bytes()), **GREEDY, logits_processor=[processor])


def test_prompts_that_cannot_be_used():
    host, processor = same()[0][0], processor_of(same())
    with refused(InputError, "input_ids"):
        host.generate(inputs_embeds=torch.zeros(1, 3, 32), **GREEDY, logits_processor=[processor])
    inputs = {name: value.flip(1) for name, value in encode(*TEXTS).items()}
    with refused(InputError, "attention_mask", "left"):
        host.generate(**inputs, **GREEDY, logits_processor=[processor])
    processor.attention_mask = torch.ones(2, 5, dtype=torch.long)
    with refused(InputError, "attention_mask", "does not fit"):
        host.generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor])
    ids = encode(*TEXTS)["input_ids"]
    with refused(InputError, "scores"):
        processor(ids, torch.zeros(2, 330))


def test_a_prompt_that_is_too_long_for_another_member():
    members = [same()[0], pair("gpt2", 1, raw_bytes(), max_position_embeddings=20)]
    with refused(InputError, "27 tokens", "20"):
        members[0][0].generate(**encode(TEXTS[0]), **GREEDY, logits_processor=[processor_of(members)])


def test_weights_that_are_no_weights():
    processor = processor_of(same(), lambda state: torch.ones(state.batch_size, 3))
    with refused(PolicyError, "sum to 1"):
        same()[0][0].generate(**encode(*TEXTS), **GREEDY, logits_processor=[processor])
    assert issubclass(PolicyError, HfRlaeError)


# custom_generate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MEMBERS)
def test_custom_generate_writes_the_same_text(name, mode):
    """Law: `custom_generate` returns ids of the host with the same text as the ensemble's ids."""
    members = MEMBERS[name]()
    host, tokenizer = members[0]
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_members, span_length=3)
    options = {"max_new_tokens": 12, "use_cache": mode != "greedy", **MODES[mode]}
    expected = seeded(ensemble.generate, **encode(*TEXTS), **options)
    got = seeded(host.generate, **encode(*TEXTS), **options, custom_generate=ensemble.as_custom_generate())
    assert int(got.max()) < host.config.vocab_size
    texts = ensemble.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert tokenizer.batch_decode(got, skip_special_tokens=True) == texts
    if ensemble.union is None:
        assert torch.equal(got, expected)


def test_custom_generate_of_a_host_with_short_tokens():
    """Tokens that the host lacks are encoded again; the end is the host's own end token, followed by padding."""
    members = different(raw_bytes, byte_level_bpe)
    host, tokenizer = members[0]
    ensemble = EnsembleForCausalLM.from_members(members, StaticPolicy([0.1, 0.8, 0.1]))
    inputs = encode(*TEXTS, tokenizer=tokenizer)
    options = {"max_new_tokens": 40, "do_sample": True, "return_dict_in_generate": True}
    for seed in range(3):
        torch.manual_seed(seed)
        expected = ensemble.generate(**inputs, **options).sequences
        torch.manual_seed(seed)
        got = host.generate(**inputs, **options, custom_generate=ensemble.as_custom_generate()).sequences
        width = inputs["input_ids"].shape[1]
        assert torch.equal(got[:, :width], inputs["input_ids"])
        assert bool((expected[:, width:] >= len(tokenizer)).any())
        for row in range(3):
            text = ensemble.tokenizer.decode(expected[row, width:], skip_special_tokens=True)
            assert tokenizer.decode(got[row, width:], skip_special_tokens=True) == text
            length = len(b"".join(ensemble.union.pieces[i] or b"" for i in expected[row, width:]))
            assert tokenizer.eos_token_id not in got[row, width : width + length]
            assert bool((got[row, width + length :] == tokenizer.eos_token_id).all())


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"bad_words_ids": [[40], [70]]},
        {"min_new_tokens": 9, "max_new_tokens": 9},
        {"max_length": 30},
        {"prompt_lookup_num_tokens": 2, "max_new_tokens": 9},
        {"eos_token_id": [40, 44, 60, 100, 120, 140], "max_new_tokens": 20},
        {"eos_token_id": None, "max_new_tokens": 9},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", MEMBERS)
def test_custom_generate_keeps_the_settings(name, options, caplog):
    """Law: options act once, as they do in the ensemble's own `generate`."""
    members = MEMBERS[name]()
    host, tokenizer = members[0]
    options = {"do_sample": False, **options}
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3)
    own = dict(options)
    if "eos_token_id" in options and options["eos_token_id"] is None:
        own["eos_token_id"] = -1
    expected = ensemble.generate(**encode(TEXTS[0]), **own)
    got = host.generate(**encode(TEXTS[0]), **options, custom_generate=ensemble.as_custom_generate())
    assert ensemble.tokenizer.decode(expected[0], skip_special_tokens=True) == tokenizer.decode(
        got[0], skip_special_tokens=True
    )


def test_custom_generate_with_processors_and_criteria():
    """The user's own processors and criteria get union ids and act once."""
    host = same()[0][0]
    ensemble = EnsembleForCausalLM.from_members(same(), policy_of_text, span_length=3)
    spy, calls = Spy(), []

    def criterion(ids, scores, **kwargs):
        calls.append(ids.shape[1])
        return torch.full((len(ids),), len(calls) >= 4)

    host.generate(
        **encode(*TEXTS),
        **GREEDY,
        logits_processor=[spy],
        stopping_criteria=[criterion],
        custom_generate=ensemble.as_custom_generate(),
    )
    assert len(spy.seen) == len(calls) == 4


def test_custom_generate_of_another_model():
    ensemble = EnsembleForCausalLM.from_members(same())
    with refused(InputError, "custom_generate", "first member"):
        same()[1][0].generate(**encode(*TEXTS), **GREEDY, custom_generate=ensemble.as_custom_generate())


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (lambda: {"logits_processor": [RepetitionPenaltyLogitsProcessor(0.02)]}, {"repetition_penalty": 1.1}),
        (
            lambda: {
                "logits_processor": [RepetitionPenaltyLogitsProcessor(0.02), RepetitionPenaltyLogitsProcessor(0.5)]
            },
            {"repetition_penalty": 1.1},
        ),
        (
            lambda: {"logits_processor": [NoBadWordsLogitsProcessor([[i] for i in range(60, 300)])]},
            {"bad_words_ids": [[44]]},
        ),
        (lambda: {"stopping_criteria": [MaxLengthCriteria(20)]}, {}),
    ],
    ids=["penalty", "two penalties", "bad words", "length"],
)
@pytest.mark.parametrize("name", MEMBERS)
def test_custom_generate_keeps_what_the_user_gave_beside_settings_of_the_same_kind(name, given, settings):
    """Law: as in a plain `generate`, a user's own processor replaces the one that settings would make."""
    members = MEMBERS[name]()
    host, tokenizer = members[0]
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3)
    options = {"do_sample": False, "max_new_tokens": 12, **settings}
    expected = ensemble.generate(**encode(TEXTS[0]), **options, **given())
    got = host.generate(**encode(TEXTS[0]), **options, **given(), custom_generate=ensemble.as_custom_generate())
    texts = [ensemble.tokenizer.decode(expected[0]), tokenizer.decode(got[0])]
    assert texts[0].removesuffix("<|stop|>") == texts[1].removesuffix(str(tokenizer.eos_token))
    by_settings = ensemble.generate(**encode(TEXTS[0]), **options)
    assert by_settings.tolist() != expected.tolist()  # the user's entries make a difference


@pytest.mark.parametrize(
    "options", [{}, {"max_time": 100.0}, {"repetition_penalty": 1.3}, {"min_new_tokens": 3}], ids=str
)
@pytest.mark.parametrize("name", MEMBERS)
def test_custom_generate_warns_of_nothing_that_the_user_did_not_give(name, options, monkeypatch):
    """No warnings of transformers about entries that are given and made from settings, as the user gives none."""
    members = MEMBERS[name]()
    ensemble = EnsembleForCausalLM.from_members(members, policy_of_text, span_length=3)
    warned = []
    monkeypatch.setattr(generation_utils.logger, "warning_once", lambda message, *args: warned.append(message))
    members[0][0].generate(
        **encode(TEXTS[0]),
        do_sample=False,
        max_new_tokens=6,
        **options,
        custom_generate=ensemble.as_custom_generate(),
    )
    assert warned == []


def test_custom_generate_stops_when_the_time_of_the_call_is_up():
    """The time of `max_time` runs from the call of `generate`, not from the start of the ensemble's loop."""
    members = same()
    ensemble = endless(members, policy_of_text, span_length=3)
    out = members[0][0].generate(
        **encode(TEXTS[0]),
        do_sample=False,
        max_new_tokens=50,
        max_time=0.0,
        custom_generate=ensemble.as_custom_generate(),
    )
    assert out.shape[1] == encode(TEXTS[0])["input_ids"].shape[1] + 1
