"""The cards of what the package ships, in `model_cards/`: `python -m tests.studies.model_cards`.

Figures are read from `docs/results/rlae` and `model_cards/results.json`. `--measure` measures the policies of the
package again, on the 400 held-out questions of that study, and draws the pictures; it takes minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from hf_rlae import EnsembleForCausalLM, load_demo_members, load_demo_policy
from hf_rlae.cards import CORY, Card, CardMember, Evaluation
from hf_rlae.cards.card import installed_versions
from hf_rlae.cli.demo_training import training_arguments
from hf_rlae.policies.card import policy_card
from hf_rlae.reports import plot_token_weights, save_figure, trace_tokens
from hf_rlae.trainers.run_cards import ADAPTER_LIMITS, training_settings
from hf_rlae.zoo import MEMBER_SETS
from tests.studies.chain_policies import held_out_questions, right_answers, with_policy

TOP = Path(__file__).resolve().parents[2]
CARDS = TOP / "model_cards"
RUNS = TOP / "docs" / "results" / "rlae" / "runs"
_LICENSE = "apache-2.0"
_AGENTS_USE = r"""
from hf_rlae import load_demo_agents

pioneer, observer = load_demo_agents()
question = "48+37="


def answer(agent, prompt):
    inputs = agent.tokenizer(prompt, return_tensors="pt")
    ids = agent.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return agent.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


first = answer(pioneer, question)
print(answer(observer, f"{question}{first}\n{question}"))
"""
_TEXTS = {"different": "with three different tokenizers", "shared": "with one tokenizer"}
_QUESTIONS = 400
_NOTE = (
    "Share of right answers (greedy) to 400 held-out chains of two and three steps. Baselines: `docs/results/rlae`. "
    "Measured by `python -m tests.studies.model_cards --measure`."
)


def rendered() -> dict[str, str]:
    """All cards, by the name of their file."""
    stored = json.loads((CARDS / "results.json").read_text(encoding="utf-8"))
    cards = {f"policy-{kind}.md": _policy(kind, stored) for kind in MEMBER_SETS}
    cards["ensemble-different.md"] = _ensemble("different", stored)
    cards["adapters.md"] = _agents(stored)
    return {name: str(card.render()) for name, card in cards.items()}


def _policy(kind: str, stored: dict[str, Any]) -> Card:
    config = load_demo_policy(kind).config  # type: ignore[arg-type]
    card = policy_card(config, f"hf_rlae-policy-{kind}", [CardMember(name) for name in MEMBER_SETS[kind]])
    card.use = _use(kind, config.span_length)
    card.training = (
        "Trained by reinforcement learning with `RLAETrainer` of `hf_rlae` (objective `mixture`) on generated chains "
        "of arithmetic, short ones first; the best of three trainings on 400 validation questions. Reward: 1 for a "
        "right answer. The command is `python -m tests.studies.shipped_policy`."
    )
    settings = training_settings(training_arguments("unused"))
    card.settings = {name: value for name, value in settings.items() if name != "seed"}
    return _completed(card, kind, stored)


def _ensemble(kind: str, stored: dict[str, Any]) -> Card:
    config = load_demo_policy(kind).config  # type: ignore[arg-type]
    card = policy_card(config, f"hf_rlae-ensemble-{kind}", [CardMember(name) for name in MEMBER_SETS[kind]])
    card.description = f"""
The ensemble that comes with `hf_rlae`: three tiny Llamas (about 0.35 M parameters each) {_TEXTS[kind]}, each right on
one operator of arithmetic and confidently wrong on the others, and a policy that gives every member a weight for each
span of {config.span_length} tokens. A member alone hardly ever solves a chain of several operators.
"""
    card.use = _use(kind, config.span_length)
    card.settings = {"span_length": config.span_length}
    return _completed(card, kind, stored)


def _use(kind: str, span_length: int | None) -> str:
    return f"""
from hf_rlae import EnsembleForCausalLM, load_demo_members, load_demo_policy

members, policy = load_demo_members("{kind}"), load_demo_policy("{kind}")
ensemble = EnsembleForCausalLM.from_members(members, policy, span_length={span_length})
inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
print(ensemble.tokenizer.batch_decode(ensemble.generate(**inputs, max_new_tokens=40), skip_special_tokens=True))
"""


def _completed(card: Card, kind: str, stored: dict[str, Any]) -> Card:
    span = load_demo_policy(kind).config.span_length  # type: ignore[arg-type]
    alone = max(_accuracies(f"{kind}-span1-{name}_alone")[0] for name in MEMBER_SETS[kind])
    trainings = _accuracies(f"{kind}-span{span}-mixture")
    baselines = {
        "best member alone": alone,
        "uniform weights": _accuracies(f"{kind}-span1-uniform_weights")[0],
        "best fixed weights": _accuracies(f"{kind}-span1-best_fixed_weights")[0],
        "oracle switching": _accuracies(f"{kind}-span{span}-oracle_switching")[0],
        f"five trainings of `mixture` (± {stdev(trainings):.3f})": mean(trainings),
    }
    card.evaluations = [
        Evaluation("generated chains of arithmetic", "accuracy", stored[kind], None, baselines, "test", note=_NOTE)
    ]
    card.license = _LICENSE
    card.picture = f"weights-{kind}.png"
    card.picture_text = "the weights of the members over the tokens of a solution"
    card.limits = [
        "It is a demonstration: it solves generated chains of arithmetic and writes nothing else.",
        *card.limits,
    ]
    card.versions = stored["versions"]
    return card


def _agents(stored: dict[str, Any]) -> Card:
    """The card of the pair of CORY agents; `tests.studies.shipped_adapters` writes `stored["agents"]`."""
    own = stored["agents"]
    return Card(
        title="hf_rlae-adapters",
        description="Two LoRA adapters on one tiny Llama (about 0.08 M parameters), which answers sums of two numbers "
        f"below 100. `{own['trainer']}` of `hf_rlae` trained them together (CORY). Either agent answers a question "
        "alone, as a pioneer, or after the answer of the other one, as an observer.",
        use=_AGENTS_USE,
        tags=("cory", "trl", "hf_rlae"),
        library_name="peft",
        license=_LICENSE,
        base=CardMember("hf_rlae/zoo/adapters/base"),
        training=f"Trained by reinforcement learning with `{own['trainer']}`, for {own['updates']} updates on sums. "
        "Reward: 1 for the right sum. The base was trained on sums with right and wrong answers before them, stopped "
        "early, so that it can use a reference. Training raised the reward, which sampled answers earn; with greedy "
        "decoding neither agent is right more often than the base. The command is "
        "`python -m tests.studies.shipped_agents`.",
        settings=own["settings"],
        evaluations=[Evaluation(**entry) for entry in own["evaluations"]],
        limits=["It is a demonstration: it answers sums and writes nothing else.", *ADAPTER_LIMITS],
        citations=[CORY],
        versions=own["versions"],
    )


def _accuracies(name: str) -> list[float]:
    """The stored shares of right answers, one per training."""
    return [
        json.loads(path.read_text(encoding="utf-8"))["accuracy"] for path in sorted(RUNS.glob(f"{name}-seed*.json"))
    ]


def measure() -> None:
    """Measures the policies of the package, and draws their pictures."""
    torch.manual_seed(0)
    path = CARDS / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    questions = held_out_questions(_QUESTIONS)
    for kind in MEMBER_SETS:
        policy = load_demo_policy(kind)  # type: ignore[arg-type]
        ensemble = with_policy(load_demo_members(kind), policy, policy.config.span_length)  # type: ignore[arg-type]
        stored[kind] = float(right_answers(ensemble, questions).mean())
        draw(ensemble, kind)
    stored["versions"] = installed_versions()
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def draw(ensemble: EnsembleForCausalLM, kind: str) -> None:
    """The picture of the weights over one solution."""
    inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
    output = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False, return_dict_in_generate=True)
    figure = plot_token_weights(MEMBER_SETS[kind], trace_tokens(ensemble, output, inputs["input_ids"].shape[1])[0])
    save_figure(figure, str(CARDS / f"weights-{kind}.png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the cards."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.model_cards", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the policies of the package again")
    if parser.parse_args(arguments).measure:
        measure()
    for name, text in rendered().items():
        (CARDS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
