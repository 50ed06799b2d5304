"""Data, a model that ends its completions, and PPO over tokens by loops, for tests of token-level PPO trainers."""

from __future__ import annotations

import math
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.support.models import pair
from tests.support.rlae import PROMPTS

LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def data(times=1):
    prompts = PROMPTS * times
    return Dataset.from_dict({"prompt": prompts, "number": list(range(len(prompts)))})


def ending_pair() -> tuple[Any, Any]:
    """A model with its tokenizer; one id in five ends the completion, so that lengths differ."""
    model, tokenizer = pair("llama")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, len(tokenizer), 5)]
    return model, tokenizer


def unsettle(trainer, scale=0.1, seed=0):
    """Adds random numbers to adapters and heads, so that they are not zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def scored(model, ids, mask, length):
    """Log-probabilities and last hidden states of one completion, from all logits."""
    found = model(input_ids=ids[None], attention_mask=mask[None], output_hidden_states=True)
    logps = found.logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logps[-length:], found.hidden_states[-1][0, -length - 1 : -1]


def full_kls(model, base, ids, mask, length):
    """The KL of one model to another before each token of a completion, over the vocabulary, from all logits."""
    own, other = (
        each(input_ids=ids[None], attention_mask=mask[None]).logits[0].log_softmax(-1) for each in (model, base)
    )
    return (own.exp() * (own - other)).sum(-1)[-length - 1 : -1]


def inputs_of(output):
    """Ids and mask of each prompt with its completion, and the number of tokens of the completion."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    masks = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    return zip(ids, masks, output["completion_mask"].sum(1).tolist(), strict=True)


@torch.no_grad()
def naive_rollout(trainer, base, output, rewards, kl_coef, agent="default"):
    """Log-probabilities, values and advantages of each completion, by loops over tokens."""
    args, head, length = trainer.args, trainer.value_head(agent), output["completion_ids"].shape[1]
    texts = []
    for row, (ids, mask, count) in enumerate(inputs_of(output)):
        logps, hidden = scored(trainer.model, ids, mask, length)
        values = (hidden @ head.weight[0] + head.bias[0])[:count].tolist()
        reference = scored(base, ids, mask, length)[0]
        kls = logps - reference if args.kl_penalty == "sampled" else full_kls(trainer.model, base, ids, mask, length)
        paid = [-kl_coef * float(kls[t]) for t in range(count)]
        paid[-1] += rewards[row]
        deltas = [paid[t] + args.gamma * (values[t + 1] if t + 1 < count else 0.0) - values[t] for t in range(count)]
        gains = [sum((args.gamma * args.lam) ** (s - t) * deltas[s] for s in range(t, count)) for t in range(count)]
        texts.append((logps, values, gains))
    return texts


def naive_loss(trainer, output, texts, agent="default"):
    """The whole loss, by loops over completions and tokens."""
    args, head, length = trainer.args, trainer.value_head(agent), output["completion_ids"].shape[1]
    every = [gain for *_, gains in texts for gain in gains]
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in every) / (len(every) - 1))
    loss = 0.0
    for (ids, mask, count), (before, values, gains) in zip(inputs_of(output), texts, strict=True):
        now, hidden = scored(trainer.model, ids, mask, length)
        for t in range(count):
            advantage = (gains[t] - mean) / deviation if args.whiten_advantages else gains[t]
            ratio = (now[t] - before[t]).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - args.epsilon, 1 + args.epsilon) * advantage)
            value = hidden[t] @ head.weight[0] + head.bias[0]
            goal = gains[t] + values[t]
            near = values[t] + (value - values[t]).clamp(-args.value_epsilon, args.value_epsilon)
            error = torch.maximum((value - goal) ** 2, (near - goal) ** 2) / 2
            loss = loss - surrogate + args.value_coef * error
    return loss / len(every)
