"""Stories for ensembles of real members: what is continued and scored, and how policies for it are trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.member_scores import score_members
from hf_rlae.errors import ConfigError
from hf_rlae.policies import PolicyConfig, PolicyModel, PolicyState
from hf_rlae.tasks import load_task
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.vocabulary import ByteVocabulary
from tests.studies.forced_text import Passage, guesses_of, segment

SPAN_LENGTH = 8
PROMPT_WORDS = 6
_BATCH = 64


@dataclass(frozen=True)
class Stories:
    """What a study reads.

    Attributes:
        prompts (`dict[str, list[str]]`): by split, different openings to be continued.
        passages (`dict[str, list[Passage]]`): by split, openings with what follows them, to be scored.
        guesses (`dict[str, list[list[float]]]`): of the passages, see `guesses_of`.
    """

    prompts: dict[str, list[str]]
    passages: dict[str, list[Passage]]
    guesses: dict[str, list[list[float]]]


def read_stories(
    path: Path, members: Sequence[Any], num_prompts: dict[str, int], num_passages: dict[str, int], num_bytes: int
) -> Stories:
    """Prompts of `story_sentiment`, and passages from lines of the same splits.

    A passage is the beginning of a line that all members can write; its text ends with a whole word.

    Args:
        path (`Path`): a text file whose lines are texts.
        members: of the ensemble.
        num_prompts, num_passages (`dict[str, int]`): by split, at most so many.
        num_bytes (`int`): at most so many bytes of a line are scored.

    Raises:
        ConfigError: fewer prompts or passages than asked for.
        TaskError: a file that cannot be read.
    """
    prompts: dict[str, list[str]] = {}
    passages: dict[str, list[Passage]] = {}
    vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
    lines = sorted(set(path.read_text(encoding="utf-8").splitlines()))
    for split, count in num_prompts.items():
        table = load_task(
            "story_sentiment", split, source=path, seed=0, prompt_format="standard", num_words=PROMPT_WORDS, limit=4000
        )
        openings = list(dict.fromkeys(table["prompt"]))
        prompts[split] = openings[:count]
        first = {opening: line for line in lines for opening in [" ".join(line.split()[:PROMPT_WORDS])]}
        found: list[Passage] = []
        for opening in openings:
            raw = first.get(opening, "").encode()
            text = raw[len(opening.encode()) :]
            is_plain = raw.startswith(opening.encode()) and all(v.representable(raw) == raw for v in vocabularies)
            if not is_plain or len(text) < num_bytes:
                continue
            found.append(Passage(opening, text[: text.rindex(b" ", 0, num_bytes + 1)] or text[:num_bytes]))
            if len(found) == num_passages[split]:
                break
        passages[split] = found
        if len(openings) < count or len(found) < num_passages[split]:
            raise ConfigError(
                f"--data: its split {split!r} has {len(openings)} different openings and {len(found)} lines that all "
                f"members can write with {num_bytes} bytes behind them, {count} and {num_passages[split]} are wanted; "
                "give a longer file, or smaller numbers"
            )
    return Stories(prompts, passages, {split: _best_guesses(members, found) for split, found in passages.items()})


def _best_guesses(members: Sequence[Any], passages: Sequence[Passage]) -> list[list[float]]:
    """Those of the member that finds the passages likeliest."""
    guesses = [guesses_of(member, passages) for member in members]
    return max(guesses, key=lambda found: sum(guess[0] for guess in found))


def sample_texts(ensemble: EnsembleForCausalLM, prompts: Sequence[str], num_tokens: int, seed: int) -> list[str]:
    """One continuation of each prompt, sampled at temperature 1."""
    texts: list[str] = []
    torch.manual_seed(seed)
    for start in range(0, len(prompts), _BATCH):
        inputs = ensemble.tokenizer(list(prompts[start : start + _BATCH]), return_tensors="pt", padding=True)
        ids = ensemble.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=num_tokens,
            do_sample=True,
            top_k=0,
        )
        texts += ensemble.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def new_policy(members: Sequence[Any], seed: int) -> PolicyModel:
    """A policy with random heads that observes the members."""
    torch.manual_seed(seed)
    return PolicyModel(PolicyConfig.for_members(members, hidden_size=64, span_length=SPAN_LENGTH))


def train_by_reward(
    members: Sequence[Any],
    prompts: Sequence[str],
    reward: Callable[..., Any],
    seed: int,
    num_rollouts: int,
    num_tokens: int,
) -> tuple[PolicyModel, list[float]]:
    """Trains a policy by the objective `mixture`.

    Args:
        members: of the ensemble.
        prompts (`Sequence[str]`): to be continued.
        reward (callable): in TRL's form.
        seed (`int`): of policy, order and texts.
        num_rollouts (`int`): of 64 texts, 8 a prompt; each is learned from in four updates.
        num_tokens (`int`): of a text.

    Returns:
        the policy, and the mean reward of each rollout.
    """
    from datasets import Dataset

    policy = new_policy(members, seed)
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=SPAN_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        args = RLAEConfig(
            folder,
            objective="mixture",
            num_generations=8,
            per_device_train_batch_size=32,
            generation_batch_size=64,
            num_iterations=2,
            max_completion_length=num_tokens,
            max_steps=num_rollouts * 4,
            learning_rate=3e-3,
            lr_scheduler_type="linear",
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = RLAETrainer(ensemble, reward, args, Dataset.from_dict({"prompt": list(prompts)}))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    curve = [entry["reward"] for entry in trainer.state.log_history if entry.get("reward") is not None]
    return policy.eval(), curve


class _Watch:
    """Equal weights; keeps what a policy sees at every span."""

    observes_members = True

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy
        self.pooled_tokens = policy.pooled_tokens
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, state: PolicyState) -> torch.Tensor:
        self.seen.append(self.policy.observe(state))
        return torch.full((state.batch_size, state.num_members), 1 / state.num_members)


def train_by_likelihood(
    members: Sequence[Any],
    passages: Sequence[Passage],
    guesses: Sequence[Sequence[float]],
    seed: int,
    particles: int,
    epochs: int = 30,
) -> PolicyModel:
    """Trains a policy on the likelihood of passages, which is differentiable in the weights.

    The gradient of `log P(text)` is the mean, over segmentations z drawn given the text, of the gradient of
    `log P(text, z) = sum_t log sum_m w_m p_m(z_t)`. Segmentations are drawn once, with equal weights, and the members'
    probabilities are kept.

    Args:
        members: of the ensemble.
        passages (`Sequence[Passage]`), guesses: to learn from.
        seed (`int`): of the policy and everything drawn.
        particles (`int`): see `segment`.
        epochs (`int`): passes over the tokens.
    """
    policy = new_policy(members, seed)
    ensemble = EnsembleForCausalLM.from_members(members, None, span_length=SPAN_LENGTH)
    generator = torch.Generator().manual_seed(seed)
    paths = [found.drawn(generator) for found in segment(ensemble, passages, guesses, particles, seed)]
    inputs = ensemble.tokenizer([passage.prompt for passage in passages], return_tensors="pt", padding=True)
    columns, longest = inputs["input_ids"].shape[1], max(map(len, paths))
    end_id = ensemble.tokenizer.pad_token_id
    rows = torch.tensor([[*path, *[end_id] * (longest - len(path))] for path in paths])
    is_token = torch.tensor([[place < len(path) for place in range(longest)] for path in paths])
    ids = torch.cat([inputs["input_ids"], rows], dim=1)
    mask = torch.cat([inputs["attention_mask"], is_token.long()], dim=1)
    member_probs = score_members(ensemble, ids, mask, columns).exp().nan_to_num(0.0)
    seen = _seen_at_spans(ensemble, policy, ids, mask, columns)
    num_spans = len(next(iter(seen.values()))) // len(rows)
    spans = torch.arange(longest) // SPAN_LENGTH
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(rows), generator=generator).split(16):
            index = (torch.arange(num_spans)[:, None] * len(rows) + part).flatten()
            output = policy({name: tensor[index] for name, tensor in seen.items()}, sample=False)
            weights = output.weights.view(num_spans, len(part), -1).transpose(0, 1)[:, spans]
            probs = (weights * member_probs[part]).sum(-1)[is_token[part]]
            loss = -probs.clamp(min=1e-12).log().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
    return policy.eval()


@torch.no_grad()
def _seen_at_spans(
    ensemble: EnsembleForCausalLM, policy: PolicyModel, ids: torch.Tensor, mask: torch.Tensor, columns: int
) -> dict[str, torch.Tensor]:
    """What the policy sees at the first token of every span, the rows of each span together."""
    watch = _Watch(policy)
    ensemble.set_policy(watch)
    ensemble(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        prompt_length=columns,
        logits_to_keep=ids.shape[1] - columns,
    )
    return {name: tensor.clone() for name, tensor in policy.stack(watch.seen).items()}
