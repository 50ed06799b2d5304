"""Rollouts of an ensemble, and the data that they keep."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.errors import InputError
from hf_rlae.objectives import objectives
from hf_rlae.trainers.rlae import batch_shrinking
from hf_rlae.trainers.rlae.rollouts import Rollouts, Sampling, concatenate, write_rollouts
from hf_rlae.trainers.rlae.row_noise import RowSampler
from tests.support.ensembles import encode
from tests.support.models import pair
from tests.support.rlae import CHAT_TEMPLATES, PROMPTS, ensemble_of, favouring, members, trainer_of
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe

OBJECTIVES = ("ppo", "mappo", "mixture")
CLOSE = {"atol": 2e-5, "rtol": 1e-4, "equal_nan": True}


def rolled(ensemble, objective="ppo", prompts=PROMPTS, seeds=None, tokens=7, **options) -> Rollouts:
    seeds = tuple(range(len(prompts))) if seeds is None else seeds
    options = {"explores": objectives[objective].explores, **options}
    sampling = Sampling(tokens, seeds, **options)
    return write_rollouts(ensemble, ensemble.policy, encode(*prompts), prompts, sampling)


def assert_rows_agree(one: Rollouts, other: Rollouts, exact: bool = False) -> None:
    """Compares all fields of two rollouts of equal shapes."""
    assert one.prompts == other.prompts
    assert one.completions == other.completions
    assert one.tensors().keys() == other.tensors().keys()
    for name, value in {**one.tensors(), **one.observation}.items():
        twin = {**other.tensors(), **other.observation}[name]
        if exact or not value.is_floating_point():
            assert torch.equal(value.nan_to_num(), twin.nan_to_num()), name
        else:
            torch.testing.assert_close(value, twin, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_is_the_same_in_any_batch(objective, kind):
    ensemble = ensemble_of(objective, kind)
    whole = rolled(ensemble, objective, seeds=(10, 11, 12, 13, 14, 15))
    assert len(set(whole.completions)) == len(PROMPTS)
    order = [4, 1, 3]
    part = rolled(ensemble, objective, [PROMPTS[row] for row in order], tuple(10 + row for row in order))
    assert_rows_agree(part, whole.select(order))
    assert_rows_agree(rolled(ensemble, objective, seeds=(10, 11, 12, 13, 14, 15)), whole, exact=True)
    other = rolled(ensemble, objective, seeds=(20, 11, 12, 13, 14, 15))
    assert other.completions[0] != whole.completions[0]
    assert other.completions[1:] == whole.completions[1:]


@pytest.mark.parametrize("observation", ["text", "both"])
def test_a_row_is_the_same_in_any_batch_where_text_is_read(observation):
    ensemble = ensemble_of("ppo", "different", observation)
    whole = rolled(ensemble)
    part = rolled(ensemble, prompts=PROMPTS[2:3], seeds=(2,))
    assert part.completions == whole.completions[2:3]
    torch.testing.assert_close(part.weights, whole.weights[2:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part.old_log_probs, whole.old_log_probs[2:3], atol=1e-4, rtol=1e-4)


def test_samples_of_one_prompt_differ_and_are_those_of_its_rows():
    ensemble = ensemble_of()
    group = rolled(ensemble, prompts=PROMPTS[:1] * 3 + PROMPTS[1:2], seeds=(5, 6, 7, 8))
    assert len(set(group.completions[:3])) == 3
    assert rolled(ensemble, prompts=PROMPTS[:1], seeds=(6,)).completions == group.completions[1:2]


@pytest.mark.parametrize(("kind", "unit"), [("shared", "token"), ("different", "token"), ("different", "byte")])
def test_the_mixtures_probability_is_that_of_the_ensemble_with_these_weights(kind, unit):
    """`old_mixture_logps` are the ensemble's log-probabilities with teacher forcing, one row after the other."""
    ensemble = ensemble_of("mixture", kind, span_length=7, weight_unit=unit)
    rollouts = rolled(ensemble, "mixture")
    for row in range(len(rollouts)):
        fixed = EnsembleForCausalLM.from_members(
            members(kind), StaticPolicy(rollouts.weights[row, 0].tolist()), span_length=7, weight_unit=unit
        )
        count = int(rollouts.completion_mask[row].sum())
        prompt = encode(PROMPTS[row])["input_ids"]
        completion = rollouts.completion_ids[row : row + 1, :count]
        with torch.no_grad():
            logits = fixed(torch.cat([prompt, completion], 1), prompt_length=prompt.shape[1]).logits
        logps = logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1).gather(-1, completion[..., None])[0, :, 0]
        torch.testing.assert_close(rollouts.old_mixture_logps[row, :count], logps, **CLOSE)
        assert rollouts.old_mixture_logps[row, count:].isnan().all()


@pytest.mark.parametrize("observation", ["members", "text", "both"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_was_kept_is_what_the_policy_says_of_it(objective, observation):
    ensemble = ensemble_of(objective, observation=observation)
    rollouts = rolled(ensemble, objective)
    mask = rollouts.span_mask
    seen = {name: value[mask] for name, value in rollouts.observation.items()}
    actions = None if rollouts.actions is None else rollouts.actions[mask]
    said = ensemble.policy(seen, actions=actions)
    torch.testing.assert_close(said.weights, rollouts.weights[mask], **CLOSE)
    torch.testing.assert_close(said.state_values, rollouts.old_values[mask], **CLOSE)
    if objective == "mixture":
        assert rollouts.actions is rollouts.old_log_probs is None
    else:
        torch.testing.assert_close(said.log_probs, rollouts.old_log_probs[mask], atol=1e-3, rtol=1e-4)
        assert rollouts.member_logps is not None


@pytest.mark.parametrize("objective", ["ppo", "mappo"])
def test_hidden_states_in_bfloat16_are_what_the_policy_saw(objective):
    """With one span per row, the policy is called with the same rows again: the first ratio is exactly 1."""
    ensemble = ensemble_of(objective, span_length=7)
    plain, rounded = (rolled(ensemble, objective, observation_dtype=dtype) for dtype in (None, torch.bfloat16))
    assert rounded.span_mask.shape[1] == 1
    kept, whole = ({name: value[:, 0] for name, value in each.observation.items()} for each in (rounded, plain))
    assert {name for name, value in kept.items() if value.dtype == torch.bfloat16} == {
        "hidden_states_0",
        "hidden_states_1",
    }
    said = ensemble.policy(kept, actions=rounded.actions[:, 0])
    ratio = (said.log_probs - rounded.old_log_probs[:, 0]).exp()
    assert torch.equal(ratio, torch.ones_like(ratio))
    assert torch.equal(said.state_values, rounded.old_values[:, 0])
    otherwise = ensemble.policy(whole, actions=rounded.actions[:, 0])
    assert (otherwise.log_probs - rounded.old_log_probs[:, 0]).abs().max() > 1e-4  # the test can fail
    torch.testing.assert_close(rounded.weights, plain.weights, atol=0.05, rtol=0.0)


def test_smaller_hidden_states_are_kept_as_they_are():
    pairs = members()
    pairs[1][0].to(torch.float16)
    rollouts = rolled(ensemble_of(given=pairs), observation_dtype=torch.bfloat16)
    assert rollouts.observation["hidden_states_0"].dtype == torch.bfloat16
    assert rollouts.observation["hidden_states_1"].dtype == torch.float16


def test_records_are_in_the_objectives_own_axes_and_nothing_has_the_vocabularys_size():
    for objective in OBJECTIVES:
        ensemble = ensemble_of(objective, "different", "both")
        rollouts = rolled(ensemble, objective)
        sizes = {size for value in {**rollouts.tensors(), **rollouts.observation}.values() for size in value.shape}
        vocabularies = [ensemble.config.vocab_size, *(member.vocab_size for member in ensemble.members)]
        assert max(sizes) < min(vocabularies)
        assert max(value.numel() for value in rollouts.tensors().values()) <= len(PROMPTS) * 7 * 2
        rollouts.advantages = torch.zeros(len(rollouts))
        kept = {name: value for name, value in rollouts.tensors().items() if name in objectives[objective].batch_axes}
        output = {
            "weights": rollouts.weights,
            "log_probs": rollouts.old_log_probs,
            "entropies": rollouts.old_log_probs,
            "values": rollouts.old_values,
        }
        given = {name: value for name, value in output.items() if name in objectives[objective].output_axes}
        objectives[objective]().check(kept, given)


def test_logps_are_kept_only_where_they_are_wanted():
    rollouts = rolled(ensemble_of(), keeps_logps=False)
    assert rollouts.member_logps is rollouts.old_mixture_logps is None


def test_rows_that_end_early_are_masked():
    tokenizer = byte_level_bpe()
    ends = favouring("a", 0.0)
    ends[0].get_output_embeddings()._forward_hooks.clear()
    ensemble = ensemble_of(given=[ends, pair("llama", 3, tokenizer)], span_length=2)

    def often_ends(_module, _args, output):
        return torch.zeros_like(output).index_fill(-1, torch.tensor(tokenizer.eos_token_id), 5.0)

    ends[0].get_output_embeddings().register_forward_hook(often_ends)
    rollouts = rolled(ensemble, "mixture", PROMPTS * 3, tokens=6)
    lengths = rollouts.completion_mask.sum(1)
    assert lengths.min() < 6
    assert len(lengths.unique()) > 2
    ends_at = rollouts.completion_ids == tokenizer.eos_token_id
    for row, length in enumerate(lengths.tolist()):
        assert bool(rollouts.is_ended[row]) == bool(ends_at[row].any())
        assert bool(ends_at[row, length - 1]) == bool(rollouts.is_ended[row])
        assert not ends_at[row, : length - 1].any()
        assert int(rollouts.span_mask[row].sum()) == -(-length // 2)
        assert rollouts.span_index[row, :length].tolist() == [token // 2 for token in range(length)]
        assert rollouts.member_logps[row, :length].isfinite().all()
        assert rollouts.member_logps[row, length:].isnan().all()
        text = tokenizer.decode(rollouts.completion_ids[row, : length - int(rollouts.is_ended[row])])
        assert rollouts.completions[row] == text


def test_texts_without_an_end_token():
    ensemble = ensemble_of(end_token_ids=[[], []])
    rollouts = rolled(ensemble)
    assert rollouts.completion_mask.all()
    assert not rollouts.is_ended.any()


def test_padding_after_an_end_token_that_is_text_is_no_text():
    """If a newline ends the text, the ids after it are padding and not more newlines."""
    newline = byte_level_bpe().encode("\n")[0]
    ensemble = ensemble_of(given=[favouring("\n", 0.0), pair("llama", 3)], end_token_ids=[[newline], [newline]])
    rollouts = rolled(ensemble, prompts=PROMPTS * 2)
    assert rollouts.is_ended.any()
    assert not rollouts.is_ended.all()
    for text, is_ended in zip(rollouts.completions, rollouts.is_ended.tolist(), strict=True):
        assert text.count("\n") <= 1
        assert text.endswith("\n") or not is_ended


def test_a_cut_members_probability_is_no_part_of_the_mixture():
    """`min_weight` cuts a member in one row that runs because of its weight in another."""
    ensemble = ensemble_of("mixture", min_weight=0.3)
    rollouts = rolled(ensemble, "mixture", PROMPTS * 2)
    weights = rollouts.weights[torch.arange(len(rollouts))[:, None], rollouts.span_index.clamp(min=0)]
    inside = rollouts.completion_mask
    is_cut = (weights < 0.3)[inside]
    per_row = rollouts.weights < 0.3
    assert per_row.any()
    assert (~per_row).all(-1).any() or (per_row[:, 0, 0].any() and (~per_row[:, 0, 0]).any())
    assert torch.equal(rollouts.member_logps[inside].isnan(), is_cut)
    kept = weights[inside].masked_fill(is_cut, 0.0)
    probs = (kept / kept.sum(-1, keepdim=True) * rollouts.member_logps[inside].exp().nan_to_num()).sum(-1)
    torch.testing.assert_close(rollouts.old_mixture_logps[inside], probs.log(), **CLOSE)


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("draw", ["word", *slow("token", "span")])
def test_draws_give_what_a_run_without_them_records_along_the_same_text(draw, kind):
    # at another temperature draws differ from the mixture, so that members are drawn with any tokenizers
    drawn = rolled(ensemble_of("mixture", kind, draw=draw), "mixture", options={"temperature": 0.9})
    held = EnsembleForCausalLM.from_members(
        members(kind), lambda state: drawn.weights[torch.arange(len(drawn)), state.span_index], span_length=2
    )
    logps = forced(held, drawn)
    assert logps.shape == drawn.member_logps.shape
    mask = drawn.completion_mask
    torch.testing.assert_close(drawn.member_logps[mask], logps[mask], **CLOSE)
    assert drawn.old_mixture_logps[mask].isfinite().all()


def forced(ensemble, rollouts):
    """The records of a run without draws, in which a processor forces the tokens of another rollout."""
    inputs = encode(*PROMPTS)
    columns, ids = inputs["input_ids"].shape[1], rollouts.completion_ids

    def force(input_ids, scores):
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, input_ids.shape[1] - columns, None], 0.0)

    out = ensemble.generate(
        **inputs, max_new_tokens=ids.shape[1], do_sample=False, logits_processor=[force], return_dict_in_generate=True
    )
    assert torch.equal(out.sequences[:, columns:], ids)
    return out.member_logps


def test_greedy_tokens_are_the_mixtures_even_if_members_are_drawn():
    drawn, plain = ensemble_of(draw="token"), ensemble_of()
    sampling = Sampling(7, None)
    inputs = encode(*PROMPTS)
    one = write_rollouts(drawn, drawn.policy, inputs, PROMPTS, sampling)
    other = write_rollouts(plain, plain.policy, inputs, PROMPTS, sampling)
    assert_rows_agree(one, other, exact=True)
    assert drawn.config.draw == "token"
    written = plain.generate(**inputs, max_new_tokens=7, do_sample=False)
    assert torch.equal(written[:, inputs["input_ids"].shape[1] :], one.completion_ids)


def test_with_different_tokenizers_the_mixture_is_sampled_where_its_probabilities_are_wanted():
    drawn, plain = (ensemble_of("mixture", "different", draw=draw) for draw in ("token", None))
    assert_rows_agree(rolled(drawn, "mixture"), rolled(plain, "mixture"), exact=True)
    assert drawn.config.draw == "token"
    for options in ({"keeps_logps": False}, {"options": {"temperature": 0.9}}):  # then members are drawn
        ours, theirs = (rolled(ensemble, "mixture", **options) for ensemble in (drawn, plain))
        assert ours.completions != theirs.completions


def test_temperature_and_top_k_shape_what_is_sampled():
    ensemble = ensemble_of()
    greedy = rolled(ensemble, prompts=PROMPTS[:2], seeds=None, explores=False, options={"top_k": 1})
    cold = rolled(ensemble, prompts=PROMPTS[:2], explores=False, options={"temperature": 1e-4})
    narrow = rolled(ensemble, prompts=PROMPTS[:2], explores=False, options={"top_p": 1e-6})
    argmax = write_rollouts(ensemble, ensemble.policy, encode(*PROMPTS[:2]), PROMPTS[:2], Sampling(7, None))
    assert greedy.completions == cold.completions == narrow.completions == argmax.completions
    assert rolled(ensemble, prompts=PROMPTS[:2], explores=False).completions != argmax.completions


def test_chats_are_read_in_each_members_own_template():
    """One tokenizer, two templates: each member's first probabilities follow its own rendering."""
    pairs = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in members("shared")]
    for (_, tokenizer), template in zip(pairs, CHAT_TEMPLATES, strict=True):
        tokenizer.chat_template = template
    ensemble = ensemble_of("mixture", given=pairs)
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "She said, hello")]
    encoded = dict(ensemble.tokenizer.apply_chat_template(chats, add_generation_prompt=True))
    rollouts = write_rollouts(ensemble, ensemble.policy, encoded, chats, Sampling(6, (1, 2)))
    assert rollouts.prompts == chats
    assert [message[0]["role"] for message in rollouts.completions] == ["assistant"] * 2
    for row, chat in enumerate(chats):
        count = int(rollouts.completion_mask[row].sum())
        completion = rollouts.completion_ids[row : row + 1, :count]
        for index, (model, tokenizer) in enumerate(pairs):
            rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            own = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(torch.cat([own, completion], 1)).logits[:, own.shape[1] - 1 : -1]
            logps = logits.log_softmax(-1).gather(-1, completion[..., None])[0, :, 0]
            torch.testing.assert_close(rollouts.member_logps[row, :count, index], logps, atol=1e-4, rtol=1e-3)


def test_a_chat_is_the_same_in_any_batch_where_tokenizers_differ():
    pairs = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in members("different")]
    for (_, tokenizer), template in zip(pairs, CHAT_TEMPLATES, strict=True):
        tokenizer.chat_template = template
    ensemble = ensemble_of("mixture", given=pairs, draw="token")
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "She said, hello")]
    for draw in (None, "token"):
        ensemble.config.draw = draw
        encoded = dict(ensemble.tokenizer.apply_chat_template(chats, add_generation_prompt=True))
        rollouts = write_rollouts(ensemble, ensemble.policy, encoded, chats, Sampling(6, (1, 2)))
        assert rollouts.member_logps[rollouts.completion_mask].isfinite().any(-1).all()
        if draw is None:
            alone = {name: value[1:] for name, value in encoded.items()}
            again = write_rollouts(ensemble, ensemble.policy, alone, chats[1:], Sampling(6, (2,)))
            assert again.completions == rollouts.completions[1:]


def test_selecting_concatenating_and_saving():
    ensemble = ensemble_of("mixture", "shared", "both")
    whole = rolled(ensemble, "mixture", tokens=6)
    short = rolled(ensemble, "mixture", PROMPTS[:2], (8, 9), tokens=3)
    joined = concatenate([whole, short])
    assert len(joined) == len(whole) + 2
    assert_rows_agree(joined.select(range(len(whole))), whole, exact=True)
    tail = joined.select([len(whole), len(whole) + 1])
    assert tail.completions == short.completions
    assert not tail.completion_mask[:, 3:].any()
    assert (tail.span_index[:, 3:] == -1).all()
    assert not tail.span_mask[:, short.span_mask.shape[1] :].any()
    assert tail.member_logps[:, 3:].isnan().all()
    for name, value in short.tensors().items():
        region = tuple(slice(size) for size in value.shape)
        assert torch.equal(tail.tensors()[name][region].nan_to_num(), value.nan_to_num()), name
    said = ensemble.policy({name: value[tail.span_mask] for name, value in tail.observation.items()})
    torch.testing.assert_close(said.weights, short.weights[short.span_mask], **CLOSE)
    assert_rows_agree(Rollouts(**whole.state()), whole, exact=True)
    assert_rows_agree(whole.to("cpu"), whole, exact=True)
    assert_rows_agree(concatenate([whole.select([row]) for row in range(len(whole))]), whole, exact=True)


def test_the_ensemble_never_changes_during_a_rollout(monkeypatch):
    """The policy and the draws of a rollout belong to its call: another thread may use the ensemble meanwhile."""
    ensemble = ensemble_of(draw="word")
    policy, attributes = ensemble.policy, dict(vars(ensemble))
    seen = []

    def watch(self, *args, **kwargs):
        seen.append((ensemble.policy is policy, ensemble.config.draw, vars(ensemble) == attributes))
        return generate(self, *args, **kwargs)

    generate = EnsembleForCausalLM.generate
    monkeypatch.setattr(EnsembleForCausalLM, "generate", watch)
    before = torch.random.get_rng_state()
    rolled(ensemble)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(seen) == {(True, "word", True)}


def ending(kind: str, objective: str, observation: str = "members", **settings):
    """An ensemble whose completions end at all lengths."""
    ensemble = ensemble_of(objective, kind, observation, **settings)
    for member in ensemble.members:
        end = torch.tensor(member.end_ids)
        member.model.get_output_embeddings().register_forward_hook(
            lambda _module, _args, output, end=end: output.index_add(
                -1, end, torch.full((*output.shape[:-1], len(end)), 4.0)
            )
        )
    return ensemble


@pytest.mark.parametrize("span_length", [3, *slow(1)])
@pytest.mark.parametrize(
    ("kind", "objective", "observation"),
    [
        ("shared", "mixture", "members"),
        ("shared", "ppo", "both"),
        ("different", "mixture", "members"),
        ("different", "mappo", "text"),
    ],
)
def test_a_shrinking_batch_writes_what_one_generate_writes(kind, objective, observation, span_length, monkeypatch):
    ensemble = ending(kind, objective, observation, span_length=span_length)
    run_rows = [0]
    for member in ensemble.members:
        member.model.register_forward_pre_hook(
            lambda _module, args, kwargs: run_rows.__setitem__(0, run_rows[0] + len(kwargs["input_ids"])),
            with_kwargs=True,
        )
    monkeypatch.setattr(batch_shrinking, "MIN_ROWS", 100)
    whole = rolled(ensemble, objective, PROMPTS * 3, tokens=12)
    assert len(whole.completion_mask.sum(1).unique()) > 3
    rows_of_one_call, run_rows[0] = run_rows[0], 0
    monkeypatch.setattr(batch_shrinking, "MIN_ROWS", 2)
    parts = rolled(ensemble, objective, PROMPTS * 3, tokens=12)
    assert run_rows[0] < 0.95 * rows_of_one_call
    assert parts.completions == whole.completions
    assert parts.tensors().keys() == whole.tensors().keys()
    masks = {"BS": whole.span_mask, "BT": whole.completion_mask}
    by_token = ("completion_ids", "member_logps", "old_mixture_logps", "span_index", "completion_mask")
    for name, value in {**whole.tensors(), **whole.observation}.items():
        twin = {**parts.tensors(), **parts.observation}[name]
        assert twin.shape == value.shape, name
        if value.dim() > 1:
            mask = masks["BT" if name in by_token else "BS"]
            value, twin = value[mask], twin[mask]
        torch.testing.assert_close(twin, value, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")


def test_a_cache_goes_on_only_with_the_texts_that_it_kept():
    ensemble = ensemble_of(kind="different")
    cache = ensemble.new_cache()
    out = ensemble.generate(**encode(*PROMPTS), max_new_tokens=3, past_key_values=cache, do_sample=False)
    cache.keep_rows(torch.tensor([2, 0]))
    with pytest.raises(InputError, match=r"rows that were kept"):
        ensemble.generate(input_ids=out, max_new_tokens=2, past_key_values=cache)
    rest = ensemble.generate(input_ids=out[[2, 0]], max_new_tokens=2, past_key_values=cache, do_sample=False)
    whole = ensemble.generate(**encode(*PROMPTS), max_new_tokens=5, do_sample=False)
    assert torch.equal(rest, whole[[2, 0]])


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_the_mixtures_probability_is_that_of_sampling_if_members_are_warped(kind, monkeypatch):
    """With `warp="members"` the objective's ratios are exact, whatever temperature and top_k are."""
    sampled, original = [], RowSampler.__call__

    def call(self, ids, scores):
        drawn = original(self, ids, scores)
        sampled.append(scores.log_softmax(-1).gather(-1, drawn.argmax(-1, keepdim=True))[:, 0])
        return drawn

    monkeypatch.setattr(RowSampler, "__call__", call)
    ensemble = ensemble_of("mixture", kind, span_length=3, warp="members")
    rollouts = rolled(ensemble, "mixture", PROMPTS[:1], options={"temperature": 0.4, "top_k": 4})
    found = rollouts.old_mixture_logps[0][rollouts.completion_mask[0]]
    torch.testing.assert_close(found, torch.cat(sampled), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("warp", "is_warned"), [("mixture", True), ("members", False)])
def test_a_warning_says_when_ratios_are_biased(warp, is_warned, tmp_path, caplog):
    ensemble = ensemble_of("mixture", warp=warp)
    trainer_of(tmp_path, "mixture", ensemble=ensemble, temperature=0.7)
    assert ("temperature=0.7: completions are sampled from another distribution" in caplog.text) == is_warned


def test_the_first_ratios_are_1_if_weights_are_shares_of_the_text(tmp_path):
    """The objective mixes by the same rescaled weights as the rollout."""
    ensemble = ensemble_of("mixture", "different", weight_unit="byte")
    trainer = trainer_of(tmp_path, "mixture", ensemble=ensemble)
    rollouts = rolled(ensemble, "mixture")
    rollouts.advantages = torch.ones(len(rollouts))
    found = trainer.objective.loss(trainer._batch(rollouts), {"weights": rollouts.weights})
    assert found.metrics["ratio_max"].item() == pytest.approx(1.0, abs=1e-4)
    assert found.metrics["kl"].item() == pytest.approx(0.0, abs=1e-6)
