"""Updates of `RLAETrainer` change the policy, and nothing else."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_rlae.trainers import RLAETrainer
from hf_rlae.trainers.rlae.rollout_buffer import RolloutBuffer
from hf_rlae.trainers.rlae.rollouts import Rollouts
from tests.support.rlae import assert_same, config, data, ensemble_of, members, parameters_of, trainer_of, vowels

OBJECTIVES = ("ppo", "mappo", "mixture")


class Watched(RLAETrainer):
    """Keeps the gradients of each update and the parameters after it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients, self.after, self.batches = [], [], []

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self._gradients()))
        optimizer.register_step_post_hook(lambda *_: self.after.append(parameters_of(self.model)))
        return optimizer

    def _gradients(self):
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batches.append(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rollout_in_bfloat16_learns_from_what_was_observed(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective, observation_dtype="bfloat16", max_steps=2, eval_dataset=data(2))
    trainer.train()
    assert logged(trainer, "policy/ratio_max")[0] == pytest.approx(1.0, abs=1e-5)
    assert trainer.buffer.rollouts.observation["hidden_states_0"].dtype == torch.bfloat16
    plain = trainer_of(tmp_path, objective, ensemble=trainer.ensemble, eval_dataset=data(2))
    assert plain.evaluate()["eval_weights/entropy"] == trainer.evaluate()["eval_weights/entropy"]  # not rounded


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_a_policy_that_looks_ahead_learns_from_what_it_saw(tmp_path, kind):
    ensemble = ensemble_of("ppo", kind, policy={"lookahead_tokens": 3})
    trainer = trainer_of(tmp_path, "ppo", ensemble=ensemble, observation_dtype="bfloat16", max_steps=2)
    before = parameters_of(ensemble.policy)
    trainer.train()
    assert logged(trainer, "policy/ratio_max")[0] == pytest.approx(1.0, abs=1e-5)
    kept = trainer.buffer.rollouts.observation["lookahead_0"]
    assert kept.dtype == torch.bfloat16
    assert bool(kept.any())
    changed = [name for name, value in parameters_of(ensemble.policy).items() if not torch.equal(value, before[name])]
    assert any("ahead_layers" in name for name in changed)


@pytest.mark.parametrize("grain", ["character", "byte", "common"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_completions_of_characters_and_bytes_are_learned_from(tmp_path, objective, grain):
    trainer = trainer_of(tmp_path, objective, ensemble=ensemble_of(objective, "different", grain=grain), max_steps=2)
    before = parameters_of(trainer.ensemble.policy)
    trainer.train()
    assert logged(trainer, "policy/ratio_max")[0] == pytest.approx(1.0, abs=1e-5)
    rollouts = trainer.buffer.rollouts
    strings = set(trainer.ensemble.union.id_of.values()) | {trainer.ensemble.union.stop_id}
    assert set(rollouts.completion_ids[rollouts.completion_mask.bool()].tolist()) <= strings
    assert any(not torch.equal(value, before[name]) for name, value in parameters_of(trainer.ensemble.policy).items())


@pytest.mark.parametrize(("objective", "mixing"), [("ppo", "contrast"), ("mappo", "guidance")])
def test_a_policy_learns_how_much_members_are_compared(tmp_path, objective, mixing):
    """The weights of a span are the strength of a contrast; texts that go on after others keep their prompts."""
    ensemble = ensemble_of(objective, mixing=mixing)
    before = parameters_of(ensemble.policy)
    trainer = trainer_of(tmp_path, objective, ensemble=ensemble, max_steps=1)
    trainer.train()
    assert logged(trainer, "policy/ratio_max")[0] == pytest.approx(1.0, abs=1e-5)
    after = parameters_of(ensemble.policy)
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_ratio_is_1_and_gradients_are_those_of_the_whole_update(tmp_path, objective):
    """One update of 8 completions: at once, in micro-batches of 2 and of 1, and with the objective alone."""
    runs = []
    for size, accumulated in ((8, 1), (2, 4), (1, 8)):
        trainer = trainer_of(
            tmp_path,
            objective,
            trainer_class=Watched,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            steps_per_generation=accumulated,
            max_steps=1,
            max_grad_norm=0.0,
        )
        trainer.train()
        runs.append(trainer)
        assert len(trainer.batches) == accumulated
        assert logged(trainer, "policy/ratio_max") == pytest.approx([1.0], abs=2e-4)
        assert logged(trainer, "policy/kl") == pytest.approx([0.0], abs=1e-6)
        assert_same(trainer.gradients[0], runs[0].gradients[0], atol=5e-6)
        assert_same(trainer.after[0], runs[0].after[0], atol=2e-4 if objective == "ppo" else 5e-5)
    whole = runs[0].batches[0]["rollouts"]
    assert len(whole) == 8
    fresh = trainer_of(tmp_path, objective)
    policy, mask = fresh.policy, whole.span_mask
    seen = {name: value[mask] for name, value in whole.observation.items()}
    output = policy(seen, actions=None if whole.actions is None else whole.actions[mask])
    loss = naive_loss(objective, fresh.settings, whole, output, mask)
    loss.backward()
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    got = {name: value for name, value in runs[0].gradients[0].items() if name in expected}
    assert_same(got, expected, atol=1e-5)
    assert all(float(value.abs().sum()) == 0 for name, value in runs[0].gradients[0].items() if name not in expected)


def naive_loss(objective, settings, rollouts, output, mask):
    """At ratios of 1 nothing is clipped: the policy gradient, with the terms of critic and entropy."""
    if objective == "mixture":
        rows, _ = mask.nonzero(as_tuple=True)
        weights = torch.zeros(*mask.shape, 2).index_put(tuple(mask.nonzero(as_tuple=True)), output.weights)
        total, count = 0.0, 0
        for row in range(len(rollouts)):
            for token in range(int(rollouts.completion_mask[row].sum())):
                probs = rollouts.member_logps[row, token].exp()
                now = (weights[row, rollouts.span_index[row, token]] * probs).sum()
                total = total + now / now.detach() * rollouts.advantages[row]
                count += 1
        entropy = -(output.weights * output.weights.log()).sum(-1).mean()
        assert len(rows)
        return -total / count - settings.entropy_coef * entropy
    log_probs, entropies = output.log_probs, output.entropies
    if objective == "ppo":
        log_probs, entropies = log_probs[:, None], entropies[:, None]
    gain = (log_probs * rollouts.advantages[mask][:, None]).mean()
    value = (output.state_values - rollouts.returns[mask]).square().mean()
    return -gain + settings.value_coef * value - settings.entropy_coef * entropies.mean()


@pytest.mark.parametrize("observation", ["members", "text", "both"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_observation_and_nothing_else(tmp_path, objective, observation):
    ensemble = ensemble_of(objective, observation=observation)
    before = parameters_of(ensemble.policy)
    frozen = [parameters_of(member.model) for member in ensemble.members]
    trainer = trainer_of(tmp_path, objective, ensemble=ensemble, max_steps=2)
    trainer.train()
    assert trainer.model is ensemble.policy
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in ensemble.policy.parameters()}
    for member, old in zip(ensemble.members, frozen, strict=True):
        assert_same(parameters_of(member.model), old)
        assert all(parameter.grad is None for parameter in member.model.parameters())
        assert not any(module.training for module in member.model.modules())
    moved = {name for name, value in parameters_of(ensemble.policy).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("heads.scores") for name in moved)
    assert any(name.startswith("heads.trunks") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) == (observation != "members")
    if objective != "mixture":
        assert any(name.startswith("heads.critic") for name in moved)


def test_members_keep_their_dtype_and_are_put_into_eval_mode(tmp_path):
    pairs = members()
    pairs[1][0].to(torch.bfloat16)
    ensemble = ensemble_of(given=pairs)
    pairs[0][0].train()
    before = [parameters_of(model) for model, _ in pairs]
    trainer = trainer_of(tmp_path, ensemble=ensemble, max_steps=2)
    assert not pairs[0][0].training
    trainer.train()
    assert [member.dtype for member in ensemble.members] == [torch.float32, torch.bfloat16]
    for (model, _), old in zip(pairs, before, strict=True):
        assert_same(parameters_of(model), old)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert trainer.buffer.rollouts.observation["hidden_states_1"].dtype == torch.bfloat16


def test_activation_checkpointing_changes_nothing(tmp_path):
    ends = []
    for is_on in (True, False):
        ensemble = ensemble_of(observation="both")
        trainer = trainer_of(tmp_path, ensemble=ensemble, max_steps=2, activation_checkpointing=is_on)
        trainer.train()
        ends.append(parameters_of(trainer.model))
        assert ensemble.policy.encoder.is_activation_checkpointing == is_on
    assert_same(ends[0], ends[1], atol=1e-6)


def test_dropout_is_off_unless_it_is_asked_for(tmp_path):
    def rates(**options):
        trainer = trainer_of(tmp_path, ensemble=ensemble_of(observation="text"), **options)
        return {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates() == {0}
    assert rates(disable_dropout=False) == {0.1}


def test_a_rollout_is_gone_through_in_a_new_order_each_time(tmp_path):
    trainer = trainer_of(tmp_path, "mixture", trainer_class=Watched, max_steps=8)
    trainer.train()
    texts = [tuple(batch["rollouts"].completions) for batch in trainer.batches]
    assert all(len(part) == 4 for part in texts)
    first, second, third, fourth = (sorted(texts[at] + texts[at + 1]) for at in (0, 2, 4, 6))
    assert first == second
    assert third == fourth != first
    assert texts[:2] != texts[2:4]


def test_the_buffer_deals_out_every_row_in_every_pass():
    names = (
        "completion_ids", "completion_mask", "span_index", "span_mask", "weights", "old_values", "is_ended",
    )  # fmt: skip
    tensors = {name: torch.arange(12.0)[:, None] for name in names}
    rollouts = Rollouts(prompts=list(range(12)), completions=[""] * 12, observation={}, **tensors)

    def dealt(index):
        buffer = RolloutBuffer(3, 4, 2, 2, index)
        parts = []
        while buffer.number == 0:
            assert buffer.is_due == (buffer.position == 0)
            buffer.rollouts = rollouts
            kept = RolloutBuffer(3, 4, 2, 2, index)
            kept.load(buffer.state())
            kept.rollouts = rollouts
            assert kept.micro_batch().prompts == buffer.micro_batch().prompts
            update = buffer.update({"old_values"})
            assert list(update) == ["old_values"]
            parts.append((buffer.micro_batch().prompts, update["old_values"][:, 0].long().tolist()))
            buffer.position += 1
        assert buffer.state() == {"position": 8, "rollouts": None}
        return parts

    alone, other = dealt(0), dealt(1)
    for at, (mine, update) in enumerate(alone):
        assert len(mine) == 3
        assert set(mine) <= set(update)
        assert update == alone[at // 2 * 2][0] + alone[at // 2 * 2 + 1][0]
    for start in (0, 4):
        assert sorted(row for mine, _ in alone[start : start + 4] for row in mine) == list(range(12))
        assert sorted(row for mine, _ in other[start : start + 4] for row in mine) == list(range(12))
    assert alone[:4] != alone[4:]
    assert alone != other  # processes shuffle their rows independently
    assert [mine for mine, _ in alone][:2] == [[6, 1, 8], [11, 4, 3]]  # of one process, from version to version


def test_a_rollout_can_be_generated_some_rows_at_a_time(tmp_path):
    runs = []
    for size in (None, 3):
        ensemble, rows = ensemble_of(), []
        ensemble.members[0].model.register_forward_pre_hook(
            lambda _module, _args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        options = {"rollout_batch_size": size, "eval_dataset": data(6), "per_device_eval_batch_size": 4}
        trainer = trainer_of(tmp_path, ensemble=ensemble, trainer_class=Watched, **options)
        trainer.train()
        runs.append((trainer, trainer.evaluate(), max(rows)))
    (whole, metrics, most), (parts, other_metrics, few) = runs
    assert (most, few) == (8, 3)
    assert parts.buffer.rollouts.completions == whole.buffer.rollouts.completions
    assert_same(parts.after[-1], whole.after[-1], atol=1e-3)
    for name in ("eval_reward", "eval_completions/mean_length", "eval_weights/entropy"):
        assert other_metrics[name] == pytest.approx(metrics[name], abs=1e-5)


@pytest.mark.parametrize("objective", ["ppo", "mappo"])
def test_target_kl_stops_the_updates_of_a_rollout(tmp_path, objective):
    trainer = trainer_of(
        tmp_path,
        objective,
        trainer_class=Watched,
        max_steps=12,
        target_kl=1e-5,
        learning_rate=0.01,
        lr_scheduler_type="linear",
        weight_decay=0.1,
    )
    trainer.train()
    after = trainer.after
    assert len(after) == 12
    for rollout in range(3):
        # the second update has the KL after the first one, is taken, and is the last one
        start = 4 * rollout
        assert not torch.equal(after[start + 1]["heads.trunks.0.weight"], after[start]["heads.trunks.0.weight"])
        assert_same(after[start + 2], after[start + 1])
        assert_same(after[start + 3], after[start + 1])
    assert not torch.equal(after[4]["heads.trunks.0.weight"], after[3]["heads.trunks.0.weight"])
    rates = logged(trainer, "learning_rate")
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 12
    assert logged(trainer, "policy/stopped") == [0.0, 0.0, 1.0, 1.0] * 3
    assert trainer.state.global_step == 12


@pytest.mark.parametrize(("theirs", "stops"), [((1.0, 1), False), ((1.0, 20), True)])
def test_the_kl_is_the_mean_over_what_all_processes_count(tmp_path, theirs, stops):
    """60 actions of this process with KL 0, others with KL 1: 1/61 is below the limit of 0.2, 20/80 above it."""
    trainer = trainer_of(tmp_path, target_kl=0.2)
    trainer._kls = [(0.0, 40.0), (0.0, 20.0)]
    trainer._gather_objects = lambda value: [value, ({"clip_ratio": [0.5]}, [theirs])]
    trainer._end_update()
    assert trainer._is_stopped == stops
    assert trainer._kls == []
    assert trainer._metrics["train"] == {"clip_ratio": [0.5], "policy/stopped": [0.0]}


def test_without_target_kl_nothing_is_stopped(tmp_path):
    trainer = trainer_of(tmp_path, trainer_class=Watched, learning_rate=0.05)
    trainer.train()
    assert all(
        not torch.equal(a["heads.trunks.0.weight"], b["heads.trunks.0.weight"])
        for a, b in zip(trainer.after, trainer.after[1:], strict=False)
    )
    assert not logged(trainer, "policy/stopped")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_texts_that_could_not_be_judged_are_left_out(tmp_path, objective):
    """Gradients and counts are those of the judged completions alone."""

    def partly(completions, **_):
        return [None if index in (1, 6) else reward for index, reward in enumerate(vowels(completions))]

    trainer = trainer_of(
        tmp_path, objective, partly, trainer_class=Watched, max_steps=1, steps_per_generation=1,
        per_device_train_batch_size=8, num_iterations=1,
    )  # fmt: skip
    trainer.train()
    rollouts = trainer.buffer.rollouts
    counts = trainer.batches[0]["num_items"]
    assert int(counts["spans"]) == 6 * 3
    assert rollouts.span_mask.any(1).tolist() == [True, False, *[True] * 4, False, True]
    assert rollouts.advantages.isfinite().all()
    assert logged(trainer, "rewards/unjudged_ratio") == [0.25]
    assert logged(trainer, "completions/mean_length") == [5.0]  # all were generated
    assert logged(trainer, "num_tokens")[0] == 40


def test_a_rollout_that_could_not_be_judged_at_all_changes_nothing(tmp_path):
    asked = []

    def second_only(completions, **_):
        asked.append(len(completions))
        return vowels(completions) if len(asked) == 1 else [None] * len(completions)

    trainer = trainer_of(
        tmp_path, "ppo", second_only, trainer_class=Watched, max_steps=8, weight_decay=0.1, optim="adamw_torch"
    )
    trainer.train()
    assert len(asked) == 2
    for later in trainer.after[4:]:
        assert_same(later, trainer.after[3])
    last = trainer.state.log_history[-2]
    assert last["loss"] == 0.0
    assert trainer.state.log_history[4]["reward"] is None
    assert trainer.state.log_history[4]["rewards/unjudged_ratio"] == 1.0


def test_rows_are_read_once_a_rollout(tmp_path, monkeypatch):
    read = []
    fetch = Dataset.__getitems__
    monkeypatch.setattr(Dataset, "__getitems__", lambda rows, places: read.append(places) or fetch(rows, places))
    trainer = trainer_of(tmp_path, max_steps=8)  # two rollouts, four updates of each
    trainer.train()
    assert [len(places) for places in read] == [8, 8]
    assert all(places == sorted(places, key=places.index) for places in read)  # prompts are adjacent


def test_a_loss_scaler_finds_gradients_also_where_nothing_is_learned(tmp_path):
    """In fp16 the scaler raises for parameters without gradients; they are set to 0."""
    trainer = trainer_of(tmp_path, reward=lambda completions, **_: [None] * len(completions))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    loss = trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert float(loss) == 0
    assert all((parameter.grad == 0).all() for parameter in trainer.policy.parameters())


def test_the_policy_is_on_one_device_where_several_are_seen(tmp_path):
    """The batch size is not multiplied by the number of devices, and there is no DataParallel."""
    args = config(tmp_path, max_steps=2)
    assert args.n_gpu == 0
    args._n_gpu = 2
    trainer = RLAETrainer(ensemble_of(), vowels, args, data())
    assert args.n_gpu == 1
    trainer.train()
    assert len(trainer.buffer.rollouts) == 8


def test_a_second_training_starts_from_the_beginning(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3)
    trainer.train()
    assert trainer.buffer.position == 3
    trainer.train()
    assert trainer.buffer.position == 3
    assert logged(trainer, "num_tokens")[0] == 40


def test_a_large_rollout_needs_enough_prompts(tmp_path):
    trainer = trainer_of(tmp_path, train=data(2), max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5
