"""CORY with PPO in two processes: what one process learns from the same texts."""

from __future__ import annotations

import os

import pytest
import torch

from hf_rlae.trainers.token_ppo.trainer import _Rollout
from tests.integration.trainers.test_cory_ppo import made, rollout, unsettle
from tests.support.processes import finish, start_two

ROWS = 8
METRICS = tuple(
    f"agent/{agent}/{name}"
    for agent in ("agent-1", "agent-2")
    for name in ("kl", "text_kl", "value/loss", "value/explained_variance", "value/mean", "value/clip_ratio")
)
_GIVEN = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_items_in_batch", "old_per_token_logps")


def trainer_of(folder, rows):
    options = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    trainer = made(folder, per_device_train_batch_size=rows, steps_per_generation=1, kl_coef=0.3, **options)
    unsettle(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def learned(trainer, texts, rows):
    """Gradients, coefficients and metrics of this process's rows of texts that were written before."""
    first = trainer.accelerator.process_index * rows
    merged = {}
    for name, batch in texts["batches"].items():
        own = {key: value[first : first + rows] if value.dim() else value for key, value in batch.items()}
        length = int(own["completion_mask"].sum(1).max())  # TRL pads to the longest text of a process
        for key in ("completion_ids", "completion_mask", "old_per_token_logps"):
            own[key] = own[key][:, :length]
        seen = _Rollout(texts["rewards"], texts["values"][name][first : first + rows, :length])
        trainer._logs["advantages"].extend([0.0] * ROWS)
        with trainer.agents.acting(name), trainer._metrics_of(name):
            scored = trainer._with_token_advantages({**own, "advantages": torch.zeros(rows)}, seen)
        merged.update({f"{name}/{key}": value for key, value in scored.items()})
    unsettle(trainer, 0.03, seed=1)
    model = trainer.accelerator.prepare(trainer.model)
    trainer.compute_loss(model, merged).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {
        "gradients": gradients,
        "coefficients": trainer.kl_coefs,
        "metrics": {name: trainer._metrics["train"][name] for name in METRICS},
        "wrapped": type(model).__name__,
    }


def child(folder, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    found = learned(trainer_of(folder / f"process-{rank}", ROWS // 2), torch.load(folder / "texts.pt"), ROWS // 2)
    torch.save(found, folder / f"found-{rank}.pt")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    """Texts of different lengths, one of which could not be judged; whitening and means are over all of them."""
    writer = trainer_of(tmp_path / "writer", ROWS)
    output = rollout(writer)
    batches = {
        name: {key: output[f"{name}/{key}"] for key in _GIVEN if f"{name}/{key}" in output}
        for name in writer.agents.names
    }
    rewards = output["agent-1/rewards"][:, None].clone()
    rewards[5] = torch.nan
    texts = {"batches": batches, "rewards": rewards, "values": {n: output[f"{n}/old_values"] for n in batches}}
    assert all(len(set(batch["completion_mask"].sum(1).tolist())) > 2 for batch in batches.values())
    torch.save(texts, tmp_path / "texts.pt")
    expected = learned(trainer_of(tmp_path / "one", ROWS), texts, ROWS)
    assert finish(start_two(child, tmp_path), 240) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt")
        assert found["wrapped"] == "DistributedDataParallel"
        assert found["gradients"].keys() == expected["gradients"].keys()
        assert sum("value_heads" in name for name in found["gradients"]) == 4
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-6, rtol=1e-4)
        assert found["coefficients"] == pytest.approx(expected["coefficients"])
        for name in METRICS:
            assert found["metrics"][name]
            assert found["metrics"][name] == pytest.approx(expected["metrics"][name])
