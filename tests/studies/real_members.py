"""What `RLAETrainer` learns with real small members: `python -m tests.studies.real_members`.

Two members that know stories continue openings of stories; the reward is how glad a continuation sounds. Measured for
each member alone, uniform weights, the best fixed weights and learned policies: the mean reward of sampled
continuations of held-out openings, and the bits per byte of held-out text. A reward is no likelihood, so fixed weights
are found, and policies trained, for each of the two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from hf_rlae.baselines.fixed_weights import best_fixed_weights
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.files import write_whole
from hf_rlae.members import Member
from hf_rlae.policies import StaticPolicy
from hf_rlae.rewards.sentiment_rule import SentimentReward
from tests.studies.forced_text import Passage, segment
from tests.studies.real_members_tables import comparison_picture, comparison_table
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import as_markdown
from tests.studies.story_policies import (
    SPAN_LENGTH,
    Stories,
    read_stories,
    sample_texts,
    train_by_likelihood,
    train_by_reward,
)

UNIFORM = "uniform weights"
FIXED = {"reward": "best fixed weights, by reward", "likelihood": "best fixed weights, by likelihood"}
LEARNED = {"reward": "policy, by reward", "likelihood": "policy, by likelihood"}

NUM_TRAINING_PROMPTS = 1000


@dataclass(frozen=True)
class Run:
    """One thing to measure.

    Attributes:
        pair (`str`): the members' names, joined by `+`.
        method (`str`): what gives the weights.
        seed (`int`): of training and of the sampled texts.
    """

    pair: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.pair}-{self.method.replace(',', '').replace(' ', '_')}-seed{self.seed}"


def plan(names: Sequence[str], seeds: int) -> list[Run]:
    """All runs of a pair."""
    methods = (*(f"{name} alone" for name in names), UNIFORM, *FIXED.values(), *LEARNED.values())
    return [Run("+".join(names), method, seed) for method in methods for seed in range(seeds)]


class Study:
    """One pair of members with its data.

    Args:
        members (`Sequence[Member]`): two or more.
        names (`Sequence[str]`): how results call them.
        stories (`Stories`): what is continued and scored.
        reward (`SentimentReward`): of the task.
        settings (`dict`): see `main`.
        results (`ResultFolder`): what is done already.
    """

    def __init__(
        self,
        members: Sequence[Any],
        names: Sequence[str],
        stories: Stories,
        reward: SentimentReward,
        settings: dict[str, Any],
        results: ResultFolder,
    ) -> None:
        self.members = list(members)
        self.names = list(names)
        self.stories = stories
        self.reward = reward
        self.settings = settings
        self.results = results
        self.ensemble = EnsembleForCausalLM.from_members(self.members, None, span_length=SPAN_LENGTH)

    def rewards(self, prompts: Sequence[str], seed: int) -> tuple[list[float], float]:
        """Of one sampled continuation of each prompt, and the mean number of bytes of a continuation."""
        texts = sample_texts(self.ensemble, prompts, self.settings["tokens"], seed)
        given = self.reward(prompts=list(prompts), completions=texts)
        num_bytes = sum(len(text.encode()) for text in texts) / len(texts)
        return [float(value) for value in given], num_bytes  # type: ignore[arg-type]

    def bits(self, passages: Sequence[Passage], guesses: Sequence[Sequence[float]]) -> list[float]:
        """Of each passage."""
        return [found.bits for found in segment(self.ensemble, passages, guesses, self.settings["particles"])]

    def measure(self, run: Run) -> dict[str, Any]:
        """Does one run: trains if there is something to train, then continues and scores what is held out.

        Returns:
            `dict`: `rewards` (one an opening) with `text_bytes` (the continuations' mean length) and `weights` (their
            mean over spans, one a member); `bits` and `bytes` (one a passage); `cpu_seconds`; and what else is worth
            keeping. Methods without training have one likelihood, found with the first seed.
        """
        started = time.process_time()
        found: dict[str, Any] = {"pair": run.pair, "method": run.method, "seed": run.seed}
        policy = self._policy(run, found)
        watch = _MeanWeights(policy)
        self.ensemble.set_policy(watch)
        rewards, num_bytes = self.rewards(self.stories.prompts["test"], 1000 + run.seed)
        found["rewards"], found["text_bytes"] = [round(value, 4) for value in rewards], round(num_bytes, 1)
        found["weights"] = watch.mean()
        if run.seed == 0 or run.method in LEARNED.values():
            passages = self.stories.passages["test"]
            self.ensemble.set_policy(policy)
            found["bits"] = [round(value, 3) for value in self.bits(passages, self.stories.guesses["test"])]
            found["bytes"] = [len(passage.text) for passage in passages]
        found["cpu_seconds"] = round(time.process_time() - started, 1)
        return found

    def _policy(self, run: Run, found: dict[str, Any]) -> Any:
        if run.method.endswith(" alone"):
            place = self.names.index(run.method.removesuffix(" alone"))
            return StaticPolicy([float(place == index) for index in range(len(self.names))])
        if run.method == UNIFORM:
            return StaticPolicy([1.0] * len(self.names))
        for goal, method in FIXED.items():
            if run.method == method:
                return StaticPolicy(self._best_weights(run, goal, found))
        if run.method == LEARNED["likelihood"]:
            train = self.stories.passages["train"], self.stories.guesses["train"]
            return train_by_likelihood(self.members, *train, run.seed, max(self.settings["particles"] // 2, 1))
        policy, found["curve"] = train_by_reward(
            self.members,
            self.stories.prompts["train"],
            self.reward,
            run.seed,
            self.settings["rollouts"],
            self.settings["tokens"],
        )
        return policy

    def _best_weights(self, run: Run, goal: str, found: dict[str, Any]) -> list[float]:
        """From the validation split; found once, with the first seed."""
        done = self.results.read(Run(run.pair, run.method, 0).name)
        if done is not None:
            return list(done["fixed"])

        def score(weights: Sequence[float]) -> float:
            self.ensemble.set_policy(StaticPolicy(list(weights)))
            if goal == "reward":
                return float(np.mean(self.rewards(self.stories.prompts["validation"], 500)[0]))
            return -sum(self.bits(self.stories.passages["validation"], self.stories.guesses["validation"]))

        best = best_fixed_weights(score, len(self.names), self.settings["resolution"])
        found["fixed"] = list(best.weights)
        found["tried"] = [[list(weights), round(value, 4)] for weights, value in best.tried]
        return list(best.weights)


class _MeanWeights:
    """Asks a policy and keeps the mean of what it gave."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.observes_members = policy.observes_members
        self.pooled_tokens = getattr(policy, "pooled_tokens", 1)
        self._given: list[torch.Tensor] = []

    def __call__(self, state: Any) -> torch.Tensor:
        given = self.policy(state)
        weights = given if isinstance(given, torch.Tensor) else given.weights
        self._given.append(weights)
        return weights

    def mean(self) -> list[float]:
        """Over all spans so far."""
        return [round(float(value), 4) for value in torch.cat(self._given).mean(0)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.real_members",
        description="What RLAETrainer learns with real small members.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--members", nargs="+", type=Path, required=True, help="folders of the members, two or more")
    parser.add_argument("--data", type=Path, required=True, help="text file; each line is a text")
    parser.add_argument("--lexicon", type=Path, help="lexicon of the reward; the package's own if not given")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--seeds", type=int, default=3, help="of training and of sampled texts")
    parser.add_argument("--rollouts", type=int, default=30, help="of each training by reward, 64 texts each")
    parser.add_argument("--tokens", type=int, default=40, help="of a continuation")
    parser.add_argument("--openings", type=int, default=192, help="held-out openings; as many to validate on")
    parser.add_argument(
        "--passages", type=int, default=24, help="held-out texts that are scored; half as many to validate on"
    )
    parser.add_argument("--bytes", type=int, default=100, help="scored of a text")
    parser.add_argument("--particles", type=int, default=8, help="segmentations kept of a scored text")
    parser.add_argument("--resolution", type=int, default=4, help="fixed weights are tried in steps of 1 / this")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)
    for name in ("seeds", "rollouts", "tokens", "openings", "particles", "resolution", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least 1")
    for name, least in (("passages", 2), ("bytes", 16)):
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: at least {least}")
    names = [path.resolve().name for path in options.members]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        parser.error(f"--members {' '.join(names)}: give two or more folders with different names")
    for path in (*options.members, options.data, *filter(None, [options.lexicon])):
        if not path.exists():
            parser.error(f"{path} is not there; give folders of models, and files for --data and --lexicon")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and writes the tables."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    names = [path.resolve().name for path in options.members]
    counted = ("seeds", "rollouts", "tokens", "openings", "passages", "bytes", "particles", "resolution")
    settings = {name: getattr(options, name) for name in counted if name != "seeds"}
    settings["lexicon"] = "package" if options.lexicon is None else options.lexicon.name
    results = ResultFolder(options.output, settings)
    runs = plan(names, options.seeds)
    left = [run for run in runs if results.read(run.name) is None]
    console = Console(width=140)
    if left:
        members = [Member.load(str(path)) for path in options.members]
        num_prompts = {"train": NUM_TRAINING_PROMPTS, "validation": options.openings, "test": options.openings}
        num_passages = {"train": 2 * options.passages, "validation": options.passages // 2, "test": options.passages}
        stories = read_stories(options.data, members, num_prompts, num_passages, options.bytes)
        study = Study(members, names, stories, SentimentReward(options.lexicon), settings, results)
        for number, run in enumerate(left, 1):
            found = study.measure(run)
            results.write(run.name, found)
            console.print(
                f"[{number}/{len(left)}] {run.method}, seed {run.seed}: reward {np.mean(found['rewards']):.4f} "
                f"({found['cpu_seconds']:.0f} s)",
                highlight=False,
            )
    entries = [entry for run in runs if (entry := results.read(run.name)) is not None]
    pair = "+".join(names)
    write_whole(options.output / f"{pair}.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    table = comparison_table(entries, FIXED)
    console.print(table.shown(pair))
    as_markdown(table, options.output / f"{pair}.md")
    comparison_picture(entries, options.output / f"{pair}.png")


if __name__ == "__main__":
    main()
