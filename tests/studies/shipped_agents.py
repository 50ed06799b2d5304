"""The pair of agents that comes with the package: `python -m tests.studies.shipped_agents --study DIR`.

Of all trainings of two agents in a folder of `tests.studies.cory_references`, the one whose agents answer best alone is
done again and saved, with its base. The study chose by one half of the held-out questions; the figures for the model
card are those of the other half, beside those of the single agent with the same seed and learning rate.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from hf_rlae.cards.card import installed_versions
from hf_rlae.trainers.run_cards import training_settings
from hf_rlae.zoo.loader import ADAPTERS_FOLDER
from tests.studies.cory_references.base import ANSWER_TOKENS, build_tokenizer, questions, right_answers, split_questions
from tests.studies.cory_references.families import FAMILIES
from tests.studies.cory_references.run import Run, train
from tests.studies.cory_references.watch import ALONE, BASE, OWN_ANSWER, TEAM, UNTRAINED, RoleWatch, answered, look
from tests.studies.cory_tables import REWARD, smoothed
from tests.studies.cory_watch import agents_of, alone
from tests.studies.model_cards import CARDS

_BASE_ALONE = "the base alone"
_NOTE = (
    "Mean probability of the right answer to {count} held-out sums; this model: both agents alone, their mean. One "
    "training, chosen among {trainings} by other held-out sums. Measured by `python -m tests.studies.shipped_agents`."
)


def best_of(study: Path) -> tuple[dict[str, Any], int]:
    """The stored training of two agents with the best reward alone at its end, and the number of such trainings.

    Args:
        study (`Path`): the folder of the study.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(study.glob("runs/*.json"))]
    pairs = [run for run in runs if FAMILIES[run["family"]].agents == 2]
    curves = [[smoothed(curve)[-1][REWARD] for curve in run["views"][ALONE].values()] for run in pairs]
    ends = [np.mean(agents) for agents in curves]
    return pairs[int(np.argmax(ends))], len(pairs)


def repeated(run: Mapping[str, Any], family: str, study: Path, settings: dict[str, Any]) -> RoleWatch:
    """Does a training again, or that of another family with its seed and learning rate."""
    return train(Run(family, run["rate"], run["seed"], run["rollouts"], study / "base"), settings)


def measured(watch: RoleWatch, count: int, seed: int) -> dict[str, dict[str, float]]:
    """The reward by view and agent, on the held-out questions that the study did not choose by.

    Args:
        watch ([`RoleWatch`]): of the training.
        count (`int`): questions by which the study chose.
        seed (`int`): of the split of questions.
    """
    asked = questions(split_questions(seed)[1][count:])
    watch.trainer.model.eval()
    given = (list(asked["prompt"]), list(asked["answer"]), ANSWER_TOKENS)
    found = {view: {name: row[0] for name, row in rows.items()} for view, rows in look(watch.trainer, *given).items()}
    return {**found, _BASE_ALONE: {name: answered(watch.trainer, BASE, *given, seed=0).reward for name in found[ALONE]}}


@torch.no_grad()
def greedy(watch: RoleWatch, agent: str | None, count: int, seed: int) -> float:
    """The share of right answers with greedy decoding, alone; of the base if there is no agent. Else as `measured`."""
    asked = questions(split_questions(seed)[1][count:])
    model, tokenizer = watch.trainer.model.eval(), watch.trainer.processing_class
    inputs = tokenizer(list(asked["prompt"]), return_tensors="pt", padding=True, padding_side="left")
    with model.disable_adapter() if agent is BASE else alone(watch.trainer, agent):
        ids = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return float(np.mean(right_answers(answers, list(asked["answer"]))))


def save(watch: RoleWatch, base: Path, output: Path) -> None:
    """Saves base and agents, each in a folder of its own; the agents refer to the base beside them."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(base / "weights", output / "base")
    build_tokenizer().save_pretrained(output / "base")
    for agent in watch.trainer.agents.names:
        folder = output / agent
        watch.trainer.save_agent(agent, folder)
        (folder / "README.md").unlink()  # the card of the pair is in `model_cards`
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "base_model_name_or_path": "../base"}, indent=1) + "\n", encoding="utf-8")


def told(run: Mapping[str, Any], watch: RoleWatch, single: RoleWatch, settings: dict[str, Any], trainings: int) -> Any:
    """What the model card says of the pair."""
    seed, chosen = settings["base"]["seed"], settings["questions"]
    own, other = measured(watch, chosen, seed), measured(single, chosen, seed)
    count = len(split_questions(seed)[1]) - chosen
    agents = watch.trainer.agents.names
    name = run["reference"]
    singly = {agent: own[ALONE][agent] for agent in agents}
    baselines = {
        **singly,
        "a team: one agent answers, the other one reads that and answers": own[TEAM]["agents"],
        "the base alone": own[_BASE_ALONE][agents[0]],
        f"the base reads an answer of {agents[0]}": own[f"{TEAM}, {UNTRAINED}"][agents[0]],
        f"one agent of {name} alone, as many texts an agent": next(iter(other[ALONE].values())),
        f"one agent of {name} reads its own answer": next(iter(other[f"{TEAM}, {OWN_ANSWER}"].values())),
    }
    decoded = {agent: greedy(watch, agent, chosen, seed) for agent in agents}
    others = {
        **decoded,
        "the base": greedy(watch, BASE, chosen, seed),
        f"one agent of {name}": greedy(single, agents_of(single.trainer)[0], chosen, seed),
    }
    return {
        "trainer": run["trainer"],
        "updates": run["steps"],
        "settings": training_settings(watch.trainer.args),
        "evaluations": [
            {
                "dataset": "sums of two numbers below 100",
                "metric": "mean probability of the right answer",
                "value": round(float(np.mean([*singly.values()])), 3),
                "baselines": {label: round(value, 3) for label, value in baselines.items()},
                "split": "test",
                "note": _NOTE.format(count=count, trainings=trainings),
            },
            {
                "dataset": "sums of two numbers below 100",
                "metric": "accuracy, greedy",
                "value": round(float(np.mean([*decoded.values()])), 3),
                "baselines": {label: round(value, 3) for label, value in others.items()},
                "split": "test",
                "note": "Share of right answers to the same sums, alone, with greedy decoding.",
            },
        ],
        "versions": installed_versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains again, saves, and measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.shipped_agents", description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="folder of the study, with the weights of its base")
    parser.add_argument("--output", type=Path, default=ADAPTERS_FOLDER)
    parser.add_argument("--results", type=Path, default=CARDS / "results.json")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    settings = json.loads((options.study / "settings.json").read_text(encoding="utf-8"))["settings"]
    run, trainings = best_of(options.study)
    Console().print(f"{run['family']}, learning rate {run['rate']:g}, seed {run['seed']}: trained again")
    pair = repeated(run, run["family"], options.study, settings)
    single = repeated(run, run["reference"], options.study, settings)
    save(pair, options.study / "base", options.output)
    stored = json.loads(options.results.read_text(encoding="utf-8"))
    stored["agents"] = told(run, pair, single, settings, trainings)
    options.results.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
