"""The study of CORY, in small: exact KLs, frontiers, plans, and the command with made-up stories."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from hf_rlae.errors import ConfigError
from tests.studies import cory as study
from tests.studies import cory_runs as runs
from tests.studies import cory_tables as tables
from tests.studies.cory_watch import COLUMNS, Watch, sample_with_kls
from tests.studies.results import ResultFolder
from tests.support.cory import adapters_of, trainer_of
from tests.support.models import pair
from tests.support.token_ppo import ending_pair, unsettle
from tests.support.tokenizers import byte_level_bpe

PROMPTS = ["Once upon a time", "The dogs", "Lily loved"]
SETTINGS = {**study.NUMBERS, **study.QUICK, "rollouts": {"sentiment": 2, "arithmetic": 2}}
SOURCES = runs.Sources()


def adapted(seed=0):
    """A model with a random adapter, some of whose texts end early, and its tokenizer."""
    model, tokenizer = ending_pair()
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    return peft, tokenizer


def curve(rewards, kls):
    """Evaluations with these rewards and KLs; the entropy is twice the KL, the KL of a text ten times."""
    return [[4.0 * n, r, k, 10 * k, 2 * k, 5.0] for n, (r, k) in enumerate(zip(rewards, kls, strict=True))]


def entry(method, *curves, rate=1e-3, seed=0, seconds=1.0):
    found = {f"agent-{n}": c for n, c in enumerate(curves, 1)}
    samples = {name: [f"{method} {seed} {name}"] for name in found}
    return {
        "method": method, "rate": rate, "seed": seed, "rollouts": 2, "steps": 4, "curves": found,
        "training_seconds": seconds, "prompts": ["A cat"], "base_samples": ["sat."], "samples": samples,
    }  # fmt: skip


# -- what is watched ------------------------------------------------------------------------------------------


def test_kls_and_entropies_are_sums_over_the_vocabulary():
    model, tokenizer = adapted()
    torch.manual_seed(1)
    texts = sample_with_kls(model, tokenizer, PROMPTS, 9)
    torch.manual_seed(1)
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    ids = model.generate(
        **{name: inputs[name] for name in ("input_ids", "attention_mask")}, max_new_tokens=9, do_sample=True, top_k=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    width = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        own = tokenizer(prompt)["input_ids"]
        completion = ids[row, width:].tolist()
        for at in range(int(texts.mask[row].sum())):
            given = torch.tensor([own + completion[:at]])  # without padding
            with torch.no_grad():
                probs = model(given).logits[0, -1].double().softmax(-1)
                with model.disable_adapter():
                    base = model(given).logits[0, -1].double().softmax(-1)
            kl = sum(p * math.log(p / q) for p, q in zip(probs.tolist(), base.tolist(), strict=True))
            assert texts.kls[row, at].item() == pytest.approx(kl, abs=1e-4)
            assert kl > 0.001
            assert texts.entropies[row, at].item() == pytest.approx(-(probs * probs.log()).sum().item(), abs=1e-4)


def test_nothing_counts_behind_the_end_of_a_text(monkeypatch):
    model, tokenizer = adapted()
    end = tokenizer.eos_token_id
    prompts = tokenizer(["The dogs"] * 3, return_tensors="pt")["input_ids"]
    written = torch.tensor([[40, 41, end, 43], [end, end, end, end], [40, 41, 42, 43]])
    monkeypatch.setattr(model, "generate", lambda **_: torch.cat([prompts, written], 1))
    texts = sample_with_kls(model, tokenizer, ["The dogs"] * 3, 4)
    assert texts.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert texts.completions[1] == ""
    means = texts.means()
    counted = [texts.kls[row, : int(texts.mask[row].sum())].sum().item() for row in range(3)]
    assert means["kl"] == pytest.approx(sum(counted) / 8, rel=1e-4)
    assert means["text_kl"] == pytest.approx(sum(counted) / 3, rel=1e-4)
    assert means["length"] == pytest.approx(8 / 3)


def test_a_new_adapter_has_no_kl_to_its_base():
    model, tokenizer = pair("llama", 0, byte_level_bpe())
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert sample_with_kls(peft, tokenizer, PROMPTS, 5).kls.abs().max() < 1e-6


def test_watching_changes_nothing_and_tells_agents_apart(tmp_path):
    def trained(callbacks):
        trainer = trainer_of(tmp_path, callbacks=callbacks, max_steps=3)
        unsettle(trainer)  # agents that differ
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train()
        return trainer

    watch = Watch(PROMPTS, {"mark": [1, 2, 3]}, lambda completions, mark, **_: [0.5 * m for m in mark], 2, 6)
    plain, watched = adapters_of(trained([])), trained([watch])
    for name, own in adapters_of(watched).items():
        for key, value in own.items():
            assert torch.equal(value, plain[name][key])
    assert list(watch.curves) == ["agent-1", "agent-2"]
    for rows in watch.curves.values():
        assert [row[0] for row in rows] == [0, 2]
        assert {row[COLUMNS.index("reward")] for row in rows} == {1.0}
        assert all(row[COLUMNS.index("kl")] > 0 for row in rows)
    assert watch.curves["agent-1"][0] != watch.curves["agent-2"][0]
    assert watch.training_seconds > 0 < watch.evaluation_seconds
    with watched.alone("agent-2"), torch.random.fork_rng():
        torch.manual_seed(0)
        last = sample_with_kls(watched.model.eval(), watched.processing_class, PROMPTS, 6)
    assert len(watch.samples["agent-2"]) == len(last.completions) == 3


# -- runs -----------------------------------------------------------------------------------------------------


def test_methods_are_what_their_names_say(tmp_path):
    made, parts = {}, runs.task_parts(runs.ARITHMETIC, SOURCES, SETTINGS)
    for method in runs.METHODS:
        run = runs.Run(runs.ARITHMETIC, method, 2e-3, 0, 3, SOURCES)
        own = replace(parts, model=copy.deepcopy(parts.model))
        made[method] = runs.trainer_of(run, own, SETTINGS, str(tmp_path))
    kinds = {method: type(trainer).__name__ for method, trainer in made.items()}
    assert {kinds[m] for m in (runs.GRPO, runs.GRPO_SAMPLES, runs.GRPO_COMPUTE)} == {"GRPOTrainer"}
    assert {kinds[m] for m in (runs.CORY, runs.CORY_ALONE, runs.CORY_FIXED)} == {"CoryTrainer"}
    assert kinds[runs.CORY_PPO] == "CoryPPOTrainer"
    for method, trainer in made.items():
        args, factor = trainer.args, 2 if method == runs.GRPO_SAMPLES else 1
        steps = SETTINGS["updates"] * (SETTINGS["ppo_iterations"] if method == runs.CORY_PPO else 1)
        assert (args.learning_rate, args.max_steps) == (2e-3, 3 * steps)
        assert args.generation_batch_size == factor * SETTINGS["texts"][runs.ARITHMETIC]
        assert args.num_generations == factor * SETTINGS["generations"]
        prompts = args.generation_batch_size // args.num_generations
        assert prompts == SETTINGS["texts"][runs.ARITHMETIC] // SETTINGS["generations"]
        assert args.generation_batch_size == SETTINGS["updates"] * args.per_device_train_batch_size
        assert trainer.model.peft_config["default"].r == SETTINGS["rank"]
        if method.startswith("CORY"):
            assert args.knowledge_transfer == (method != runs.CORY_ALONE)
            assert args.role_exchange_steps == (0 if method == runs.CORY_FIXED else steps * SETTINGS["exchange"])
            assert args.credit == "team"
    assert (made[runs.CORY_PPO].args.kl_coef, made[runs.CORY_PPO].args.kl_target) == (SETTINGS["kl_coef"], None)
    assert made[runs.CORY].args.beta == made[runs.GRPO].args.beta == SETTINGS["beta"]


def test_training_and_evaluation_questions_differ():
    parts = runs.task_parts(runs.ARITHMETIC, SOURCES, {**SETTINGS, "questions": 100})
    known, asked = (
        {tuple(re.findall(r"\d+", prompt)) for prompt in part["prompt"]} for part in (parts.train, parts.held_out)
    )
    assert len(asked) > 20
    assert not known & asked


def test_the_plan_has_all_methods_and_seeds():
    plan = study.Plan(runs.TASKS, [1e-3, 1e-2], 5, 3, {"sentiment": 40, "arithmetic": 20}, SOURCES)
    both, further = plan.first(), plan.further(96)
    names = {run.name for run in [*both, *further]}
    assert len(names) == len(both) + len(further) == 2 * (4 * 5 + 5 * 3)
    assert {(run.task, run.method) for run in both} == {(t, m) for t in runs.TASKS for m in (runs.GRPO, runs.CORY)}
    assert {run.task for run in further} == {runs.SENTIMENT}
    assert {run.method for run in further} == set(runs.METHODS) - {runs.GRPO, runs.CORY}
    for run in [*both, *further]:
        assert run.rollouts == (96 if run.method == runs.GRPO_COMPUTE else 20 if run.task == runs.ARITHMETIC else 40)
    longer = {run.seed for run in further if run.method == runs.GRPO_COMPUTE}
    assert longer.isdisjoint({run.seed for run in both})
    only = study.Plan([runs.ARITHMETIC], [1e-3], 1, 1, {"sentiment": 40, "arithmetic": 20}, SOURCES)
    assert only.further(96) == []


def test_equal_compute_is_measured_once(tmp_path):
    results = ResultFolder(tmp_path, {"every": 4})
    plan = study.Plan([runs.SENTIMENT], [1e-3], 3, 1, {"sentiment": 40}, SOURCES)
    for run in plan.first():
        results.write(run.name, {"training_seconds": (10.0 if run.method == runs.GRPO else 23.4) + run.seed})
    assert study.equal_rollouts(results, plan.first()) == 88  # 40 * 24.4 / 11 = 88.7, evaluated every 4 steps
    for run in plan.first():
        results.write(run.name, {"training_seconds": 1.0})
    assert study.equal_rollouts(results, plan.first()) == 88


def test_a_run_costs_loading_rollouts_and_evaluations():
    assert study.Cost(1.0, 0.5, 0.25).of(rollouts=8, every=4) == pytest.approx(1.0 + 4.0 + 0.75)


# -- frontiers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.02, 0.05, 0.11])
def test_on_one_frontier_the_kl_does_not_depend_on_how_fast_it_is_walked(speed):
    rewards = [0.4 + speed * n for n in range(30)]
    walked = curve(rewards, [3 * (reward - 0.4) for reward in rewards])
    for reward in (0.45, 0.63, 0.7):
        assert tables.kl_at(walked, reward) == pytest.approx(3 * (reward - 0.4))


def test_the_first_time_counts_and_never_is_no_number():
    there_and_back = curve([0.0] * 3 + [1.0] * 3 + [0.0] * 3 + [1.0] * 3, np.arange(12.0))
    assert tables.kl_at(there_and_back, 0.99) < 5.0
    assert math.isnan(tables.kl_at(there_and_back, 1.01))
    assert tables.kl_at(there_and_back, -1.0) == 0.0
    both = entry("CORY", there_and_back, curve([0.0] * 4, [0.0] * 4))
    assert math.isnan(tables.run_kl_at(both, 0.5))  # one agent alone is not the team


def test_smoothing_keeps_lines_and_means():
    flat = curve([0.3] * 5, [0.1] * 5)
    np.testing.assert_allclose(tables.smoothed(flat)[:, 1:], np.array(flat)[:, 1:])
    assert tables.smoothed(curve([0, 3, 6, 9], [0] * 4))[:, 1].tolist() == [0, 1.5, 3, 6]


def lines(slope, count=2, **options):
    """Runs whose KL is `slope` times the gain in reward, from 0.5 to 0.6."""
    rewards = np.linspace(0.5, 0.6, 21)
    return [curve(rewards, slope * (rewards - 0.5)) for _ in range(count)]


def test_tables_compare_at_equal_reward():
    entries = [entry("GRPO", *lines(10, 1), seed=seed) for seed in range(3)]
    entries += [entry("CORY", *lines(5), seed=seed, seconds=2.5) for seed in range(3)]
    entries += [entry("CORY-PPO", *lines(5)[:1], curve([0.5] * 21, [0.0] * 21), seed=seed) for seed in range(3)]
    levels = tables.reward_levels(entries, "GRPO")
    top = tables.smoothed(lines(10)[0])[-1, 1]
    assert levels == [round(0.5 + share * (top - 0.5), 3) for share in tables.SHARES]
    rows = {row[0]: row[2:] for row in tables.frontier_table(entries, "GRPO").rows}
    assert rows["GRPO"][1] == f"{10 * (levels[1] - 0.5):.3f} ± 0.000 (3 of 3)"
    assert rows["CORY"][1] == f"{5 * (levels[1] - 0.5):.3f} ± 0.000 (3 of 3)"
    assert rows["CORY-PPO"][1] == "(0 of 3)"
    ratios = {row[0]: row[2:] for row in tables.ratio_table(entries, "GRPO").rows}
    assert ratios == {"CORY": ("0.50 [0.50, 0.50]",) * 3, "CORY-PPO": ("",) * 3}
    compute = {row[0]: row[1:] for row in tables.compute_table(entries, "GRPO").rows}
    assert compute["CORY"] == ("2", "4", "2.5 ± 0.0", "2.50")


def test_sensitivity_is_the_range_over_learning_rates():
    entries = [entry("GRPO", *lines(slope, 1), rate=rate) for rate, slope in ((1e-3, 2), (3e-3, 4), (1e-2, 20))]
    (row,) = tables.sensitivity_table(entries).rows
    assert row[0] == "GRPO"
    assert row[-2:] == ("0.000", "10.0")
    assert len(row) == len(tables.sensitivity_table(entries).headings) == 1 + 2 * 3 + 2


def test_agents_have_rows_of_their_own(tmp_path):
    entries = [entry("GRPO", *lines(10, 1)), entry("CORY", lines(5)[0], lines(1)[0])]
    rows = [row[:3] for row in tables.agents_table(entries).rows]
    assert rows == [("GRPO", "0.001", "agent-1"), ("CORY", "0.001", "agent-1"), ("CORY", "0.001", "agent-2")]
    kls = [float(row[4]) for row in tables.agents_table(entries).rows]
    assert kls[0] == pytest.approx(2 * kls[1], abs=2e-3)
    assert kls[1] == pytest.approx(5 * kls[2], abs=6e-3)
    tables.frontier_picture(entries, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_of_the_right_runs(tmp_path):
    idle = curve([0.5] * 21, [0.0] * 21)
    entries = [entry("GRPO", *lines(10, 1)), entry("GRPO", *lines(30, 1), seed=1), entry("CORY", *lines(5)),
               entry("CORY", idle, idle, seed=1)]  # fmt: skip
    tables.write_samples(entries, "GRPO", tmp_path / "samples.md")
    text = (tmp_path / "samples.md").read_text()
    assert "> A cat ... sat." in text
    assert "largest KL: GRPO, learning rate 0.001, seed 1, agent-1" in text
    assert "> A cat ... GRPO 1 agent-1" in text
    assert "smallest KL of those that learned: CORY, learning rate 0.001, seed 0" in text


# -- the command ----------------------------------------------------------------------------------------------

NAMES = ["Lily", "Tom", "Anna", "Ben", "Sam", "Mia", "Leo", "Zoe", "Nina", "Max"]
PLACES = ["house", "park", "garden", "yard", "room", "forest"]


@pytest.fixture
def given(tmp_path):
    """Options with a random model and made-up stories."""
    model, tokenizer = pair("llama", 0, byte_level_bpe())
    folder, data = tmp_path / "model", tmp_path / "stories.txt"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data.write_text("".join(f"{name} was in the {place} and was happy.\n" for name in NAMES for place in PLACES))
    return ["--model", str(folder), "--data", str(data), "--quick", "--jobs", "1", "--output", str(tmp_path / "out")]


@pytest.mark.slow
def test_the_command_measures_writes_and_goes_on(given, tmp_path, monkeypatch, capsys):
    methods = (runs.GRPO, runs.GRPO_COMPUTE, runs.CORY, runs.CORY_PPO)
    monkeypatch.setattr(study, "METHODS", methods)
    threads = torch.get_num_threads()
    try:
        study.main([*given, "--tasks", "sentiment"])
        monkeypatch.setattr(runs.Run, "measure", lambda *_: pytest.fail("measured again"))
        study.main([*given, "--tasks", "sentiment"])
    finally:
        torch.set_num_threads(threads)
    output = tmp_path / "out"
    found = [json.loads(path.read_text()) for path in (output / "runs").glob("sentiment-*.json")]
    assert {entry["method"] for entry in found} == set(methods)
    for each in found:
        agents = ["agent-1", "agent-2"] if each["method"].startswith("CORY") else ["agent-1"]
        assert list(each["curves"]) == list(each["samples"]) == agents
        for rows in each["curves"].values():
            assert len(rows) == each["rollouts"] + 1
            assert (rows[0][0], rows[-1][0]) == (0, each["steps"])
            assert rows[0][COLUMNS.index("kl")] == 0
            assert all(0 <= row[COLUMNS.index("reward")] <= 1 for row in rows)
        assert each["cpu_seconds"] >= each["training_seconds"] > 0
    for name in ("frontier", "ratios", "rates", "agents", "compute", "samples"):
        assert (output / f"sentiment-{name}.md").read_text()
    assert (output / "sentiment-frontier.png").exists()
    kept = [path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".md")]
    assert not any(str(tmp_path) in text for text in kept)


@pytest.mark.slow
def test_costs_are_measured_by_training(monkeypatch):
    seen = []
    monkeypatch.setattr(study, "train", lambda run, given: seen.append((run.rollouts, given["every"])) or Spent(run))
    assert study.pilot(runs.ARITHMETIC, runs.GRPO, SOURCES, SETTINGS).rollout == pytest.approx(2.0)
    assert seen == [(1, 1), (1 + study._PILOT_ROLLOUTS, 1)]
    monkeypatch.undo()
    cost = study.pilot(runs.ARITHMETIC, runs.GRPO, SOURCES, SETTINGS)
    assert min(cost.once, cost.evaluation) > 0 <= cost.rollout


class Spent:
    """What is watched of a run whose first rollout takes 5 seconds and each later one 2."""

    def __init__(self, run):
        self.training_seconds = 3.0 + 2.0 * run.rollouts
        self.evaluation_seconds = 1.0 + run.rollouts


def test_the_plan_says_what_all_runs_take(monkeypatch, capsys):
    monkeypatch.setattr(study, "pilot", lambda task, method, *_: study.Cost(1.0, 2.0 if "CORY" in method else 1.0, 0.0))
    plan = study.Plan(runs.TASKS, [1e-3, 1e-2], 3, 2, {"sentiment": 10, "arithmetic": 10}, SOURCES)
    study.print_plan(plan, {**SETTINGS, "every": 2}, 2, Console(width=160), importing=8.0)
    text = capsys.readouterr().out
    # GRPO 12 and CORY 12 runs; GRPO x 2 and equal compute (20 rollouts) 4 each; three kinds of CORY 4 each
    total = 12 * 11 + 12 * 21 + 4 * 11 + 4 * 21 + 12 * 21 + 8 * 44 / 8
    assert f"44 runs, {total / 60:.0f} minutes of one core in all; with 2 idle cores {total / 120:.0f}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--rates", "0.1", "0.1"], "different numbers between 0 and 1"),
        (["--data", "nowhere.txt"], "nowhere.txt is not there"),
        (["--tasks", "riddles"], "invalid choice"),
    ],
)
def test_bad_options_are_refused(options, message, given, capsys):
    with pytest.raises(SystemExit):
        study.main([*given, *options])
    assert message in capsys.readouterr().err


def test_what_is_missing_is_said(given, capsys):
    for options, message in ((given[4:], "needs --model and --data"), (given[:4], "--output is missing")):
        with pytest.raises(SystemExit):
            study.main(options)
        assert message in capsys.readouterr().err
    sources = runs.Sources(*map(study.Path, (given[1], given[3])))
    with pytest.raises(ConfigError, match="500 are wanted"):
        runs.task_parts(runs.SENTIMENT, sources, {**SETTINGS, "prompts": 500})
