"""Values that are not finite stop training, with an error that names the right group."""

from __future__ import annotations

import gc
import math
import re

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_rlae.errors import HfRlaeError, NonFiniteError
from hf_rlae.trainers.durable.finite import FiniteCheck, FiniteTrainer, check_finite
from tests.support.trainers import Toy, ToyTrainer, toy_trainer

BAD = [math.nan, math.inf, -math.inf]


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Transformers collects garbage at each start of training; objects of other tests are excluded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("bad", BAD)
def test_check_finite(bad):
    """For each position: the count, the first position, and its owner."""
    for row in range(2):
        for column in range(3):
            values = torch.zeros(2, 3)
            check_finite(values, "rewards")
            values[row, column] = bad
            with pytest.raises(NonFiniteError) as error:
                check_finite(values, "rewards", ["a", "b", "c"], 12)
            assert f"rewards at step 12: 1 of 6 values are NaN or infinite ({'abc'[column]})" in str(error.value)
            assert f"at {[row, column]}" in str(error.value)
    assert isinstance(error.value, HfRlaeError)


def test_check_finite_of_other_tensors():
    """Minus infinity, integers, scalars, empty tensors, half precision."""
    with pytest.raises(NonFiniteError, match="logits: 1 of 2"):
        check_finite(torch.tensor([0.0, -math.inf]), "logits")
    check_finite(torch.arange(3), "ids")
    check_finite(torch.zeros(0), "nothing")
    check_finite(torch.full((5,), 65504.0, dtype=torch.half), "half")
    with pytest.raises(NonFiniteError, match="loss at step 0"):
        check_finite(torch.tensor(math.nan), "loss", ["x"], 0)


class Faulty(ToyTrainer):
    """Two groups; one parameter has a bad gradient at one step, or is bad after the step."""

    fault = ("gradient", "second.weight", math.nan, 3)

    def finite_groups(self):
        return {"pioneer": self.model.first.parameters(), "observer": self.model.second.parameters()}

    def training_step(self, model, inputs, num_items_in_batch=None):
        kind, name, bad, step = self.fault
        parameter = dict(self.model.named_parameters())[name]
        is_due = self.state.global_step == step - 1 and self.accelerator.sync_gradients
        hook = None
        if is_due and kind == "gradient":
            hook = parameter.register_hook(lambda grad: grad.index_fill(-1, torch.tensor([0]), bad))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if hook is not None:
            hook.remove()
        if is_due and kind == "parameter":
            self.optimizer.param_groups[0]["lr"] = bad
        return loss


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("name", "group"), [("first.bias", "pioneer"), ("second.weight", "observer")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_gradients(tmp_path, bad, name, group, max_grad_norm):
    """Only the right group is named, although clipping would affect both; the step is not taken."""
    trainer = toy_trainer(tmp_path, Faulty, max_grad_norm=max_grad_norm)
    trainer.fault = ("gradient", name, bad, 3)
    with pytest.raises(NonFiniteError, match=rf"^gradients of {group} at step 3: \d of \d values of {name} "):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(value.isfinite().all()) for value in trainer.model.parameters())


def test_parameters(tmp_path):
    """A step that makes them NaN is the last, and no checkpoint has them."""
    trainer = toy_trainer(tmp_path, Faulty, save_steps=1)
    trainer.fault = ("parameter", "first.weight", math.inf, 3)
    with pytest.raises(NonFiniteError, match=r"^parameters of pioneer, observer at step 3: .* of first.weight "):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_the_callback_alone(tmp_path):
    """In a plain trainer of transformers both groups are named, since clipping hides the origin."""

    class Plain(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.model.second.bias.grad[0] = math.nan
            return loss

    model = Toy()
    check = FiniteCheck(lambda: {"one": model.first.parameters(), "two": model.second.parameters()})
    trainer = toy_trainer(tmp_path, Plain, callbacks=[check])
    model.load_state_dict(trainer.model.state_dict())
    check.groups = lambda: {"one": trainer.model.first.parameters(), "two": trainer.model.second.parameters()}
    with pytest.raises(NonFiniteError, match=r"gradients of one, two at step 1: .* first.weight"):
        trainer.train()


def test_the_default_group(tmp_path):
    """Trained parameters only, no frozen ones."""

    class Frozen(FiniteTrainer):
        pass

    trainer = toy_trainer(tmp_path, Frozen, max_steps=1, eval_strategy="no")
    trainer.model.first.weight.requires_grad_(False)
    group = trainer.finite_groups()["model"]
    assert [tuple(parameter.shape) for parameter in group] == [(4,), (1, 4), (1,)]


def test_one_check_of_each_kind_a_step(tmp_path):
    """One check of gradients and one of parameters, however many batches are accumulated."""
    trainer = toy_trainer(tmp_path, max_steps=3, eval_strategy="no")
    asked = []
    trainer.finite_check.groups = lambda: asked.append(trainer.state.global_step) or trainer.finite_groups()
    trainer.train()
    assert asked == [0, 0, 1, 1, 2, 2]


def test_large_parameters_are_no_fault():
    """Half precision whose norm overflows, parameters without gradient, and empty ones."""
    half = nn.Parameter(torch.full((4,), 6e4, dtype=torch.half))
    assert not torch.linalg.vector_norm(half.detach()).isfinite()
    half.grad = torch.ones_like(half)
    others = [nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(2))]
    others[0].grad = torch.zeros(0)
    check = FiniteCheck(lambda: {"half": [half], "others": others, "none": []})
    check.check_gradients(1)
    check.check_parameters(1)
    half.grad[2] = math.inf
    with pytest.raises(
        NonFiniteError, match=re.escape("of half at step 1: 1 of 4 values of a parameter of shape (4,)")
    ):
        check.check_gradients(1)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        pytest.param(1e20, torch.float32, id="squares overflow"),
        pytest.param(1.5e19, torch.float32, id="only the sum of squares overflows"),
        pytest.param(6e4, torch.half, id="half precision"),
    ],
)
def test_gradients_whose_norm_is_infinite(value, dtype):
    """Clipping by an infinite norm sets all gradients to 0: training would go on and learn nothing."""
    small, large = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=dtype))
    small.grad, large.grad = torch.ones(2), torch.full((2,), value, dtype=dtype)
    check = FiniteCheck(lambda: {"policy": [small], "observer": [large], "none": []})
    with pytest.raises(NonFiniteError, match=r"policy \(values up to 1\), observer .* at step 4: grad_norm=inf"):
        check.check_gradients(4)
    nn.utils.clip_grad_norm_([small, large], 1.0)
    assert not small.grad.any()  # what the check protects from


@pytest.mark.parametrize("batch", [0, 1], ids=["the first micro-batch", "the last"])
@pytest.mark.parametrize("is_filtered", [True, False], ids=["logs filtered", "logs as they are"])
def test_a_loss_that_is_not_finite(tmp_path, batch, is_filtered):
    """With `logging_nan_inf_filter` (the default of transformers) it would not even be logged."""

    class Offset(ToyTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            is_due = self.state.global_step == 2 and self.num_batches % 2 == (batch + 1) % 2
            return loss + math.inf if is_due else loss  # the gradients are finite

    trainer = toy_trainer(tmp_path, Offset, logging_nan_inf_filter=is_filtered, eval_strategy="no")
    with pytest.raises(NonFiniteError, match=r"^loss at step 3: 1 of 1 values"):
        trainer.train()
    assert trainer.state.global_step == 2
