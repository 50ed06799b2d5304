"""Laws of every objective in the registry."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from hf_rlae.errors import ConfigError
from hf_rlae.objectives import Objective, ObjectiveError, ObjectiveSettings, objectives
from tests.unit.objectives.batches import NAMES, axes_of, batch_of, leaves, loss_of, masks_of

REDUCTIONS = ("token", "sequence")
RUBBISH = (torch.nan, torch.inf, -torch.inf, 1e30)

every = pytest.mark.parametrize("name", NAMES)
reduced = pytest.mark.parametrize("reduction", REDUCTIONS)


def settings_of(name, reduction="token"):
    return replace(objectives[name].defaults, reduction=reduction)


def test_they_are_found():
    assert {"ppo", "mappo", "mixture"} <= set(NAMES)


@every
def test_what_it_declares(name):
    kind = objectives[name]
    assert issubclass(kind, Objective)
    assert kind.registered_name == name
    assert kind.actors
    assert set(kind.actors) <= {"joint", "per_member"}
    assert isinstance(kind.explores, bool)
    assert kind.default_advantages in ("gae", "group_relative")
    for section in ("Formula", "Args:", "References:", "Requirements:", "Relations:", "Example:"):
        assert section in inspect.getdoc(kind)


@every
@reduced
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_what_does_not_count_may_hold_anything(name, reduction, rubbish):
    """Neither the loss nor a gradient changes by a bit, and nothing that does not count has a gradient."""
    batch, output = batch_of(name)
    expected, expected_gradients = loss_of(name, batch, output, settings_of(name, reduction))
    masks = masks_of(name, batch)

    def spoil(tensors):
        spoiled = {}
        for key, tensor in tensors.items():
            mask = masks[axes_of(name, key)]
            is_kept = key in ("span_mask", "completion_mask")
            number = rubbish if tensor.is_floating_point() else 99
            spoiled[key] = tensor.clone() if is_kept else tensor.detach().masked_fill(~mask, number)
        return spoiled

    found, gradients = loss_of(name, spoil(batch), leaves(spoil(output)), settings_of(name, reduction))
    assert torch.equal(found.loss, expected.loss)
    for key, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[key])
        assert not bool(gradient.masked_fill(masks[axes_of(name, key)], 0.0).any())
    for key, number in found.metrics.items():
        torch.testing.assert_close(number, expected.metrics[key])


@every
@reduced
@pytest.mark.parametrize("critic", [True, False])
def test_parts_sum_to_the_whole(name, reduction, critic):
    """Minibatches with the numbers of the whole batch have its loss and its gradients."""
    batch, output = batch_of(name, rows=6, critic=critic)
    settings, objective = settings_of(name, reduction), objectives[name]()
    whole, gradients = loss_of(name, batch, output, settings)
    total = 0.0
    collected = {key: torch.zeros_like(tensor) for key, tensor in output.items()}
    for rows in ([0], [4, 1, 2], [5, 3]):
        part = {key: tensor[rows] for key, tensor in batch.items()}
        own = leaves({key: tensor[rows] for key, tensor in output.items()})
        found, part_gradients = loss_of(name, part, own, settings, objective.num_items(batch))
        total += found.loss
        for key, gradient in part_gradients.items():
            collected[key][rows] = gradient
    torch.testing.assert_close(total, whole.loss, atol=1e-12, rtol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(collected[key], gradient, atol=1e-12, rtol=0)
    summed = {}
    for rows in ([0], [4, 1, 2], [5, 3]):
        for key, number in objective.num_items({key: tensor[rows] for key, tensor in batch.items()}).items():
            summed[key] = summed.get(key, 0) + number
    assert summed == objective.num_items(batch)


@every
def test_numbers_that_are_missing(name):
    batch, output = batch_of(name)
    with pytest.raises(ObjectiveError, match=r"num_items has no .*spans"):
        objectives[name]().loss(batch, output, num_items={"sequences": 3.0})


@every
@reduced
def test_order_and_padding_change_nothing(name, reduction):
    """Rows, members, and further columns of padding."""
    batch, output = batch_of(name)
    settings = settings_of(name, reduction)
    expected, gradients = loss_of(name, batch, output, settings)
    rows, members = [2, 0, 3, 1], [1, 2, 0]

    def turn(tensors):
        turned = {key: tensor.detach()[rows] for key, tensor in tensors.items()}
        for key in turned:
            if axes_of(name, key).endswith("M"):
                turned[key] = turned[key][..., members]
        return turned

    found, turned_gradients = loss_of(name, turn(batch), leaves(turn(output)), settings)
    torch.testing.assert_close(found.loss, expected.loss)
    for key, gradient in turn(gradients).items():
        torch.testing.assert_close(turned_gradients[key], gradient)

    def pad(tensors):
        return {
            key: torch.cat([tensor.detach(), torch.zeros_like(tensor[:, :2])], dim=1) for key, tensor in tensors.items()
        }

    padded, padded_gradients = loss_of(name, pad(batch), leaves(pad(output)), settings)
    torch.testing.assert_close(padded.loss, expected.loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(padded_gradients[key][:, : gradient.shape[1]], gradient)


@every
@reduced
def test_a_batch_of_nothing(name, reduction):
    """The loss is 0, its gradients are 0, and only the explained variance is not a number."""
    batch, output = batch_of(name)
    for key in ("span_mask", "completion_mask"):
        if key in batch:
            batch[key] = torch.zeros_like(batch[key])
    found, gradients = loss_of(name, batch, output, settings_of(name, reduction))
    assert found.loss.item() == 0.0
    assert all(not bool(gradient.any()) for gradient in gradients.values())
    assert {key for key, number in found.metrics.items() if not bool(number.isfinite())} == {"explained_variance"}
    no_rows = {key: tensor[:0] for key, tensor in batch.items()}
    found = objectives[name]().loss(no_rows, {key: tensor[:0] for key, tensor in output.items()})
    found.loss.backward()
    assert found.loss.item() == 0.0


@every
@reduced
@pytest.mark.parametrize("seed", range(3))
def test_gradients(name, reduction, seed):
    """Against finite differences."""
    batch, output = batch_of(name, seed=seed, rows=3, spans=3)
    keys = list(output)

    def loss(*tensors):
        return objectives[name]().loss(batch, dict(zip(keys, tensors, strict=True)), settings_of(name, reduction)).loss

    assert torch.autograd.gradcheck(loss, [output[key] for key in keys])


@every
def test_not_a_number_where_it_counts_is_not_hidden(name):
    """So that a trainer can stop."""
    kind = objectives[name]
    for key in (*kind.output_axes, "advantages", "returns", "old_values"):
        batch, output = batch_of(name)
        place = batch if key in batch else output
        spoiled = place[key].detach().clone()
        spoiled[0, 0] = torch.nan
        place[key] = spoiled.requires_grad_(key in output)
        found = kind().loss(batch, output)
        assert bool(found.loss.isnan()), key


@every
def test_metrics_are_detached_numbers_of_the_same_dtype(name):
    batch, output = batch_of(name, dtype=torch.float32)
    found, _ = loss_of(name, batch, output)
    assert found.loss.dtype == torch.float32
    assert found.loss.dim() == 0
    for number in found.metrics.values():
        assert number.dtype == torch.float32
        assert number.dim() == 0
        assert not number.requires_grad
    expected = {"policy_loss", "clip_ratio", "kl", "ratio_max", "entropy"}
    critic = {"value_loss", "value_clip_ratio", "explained_variance"}
    assert expected | critic <= set(found.metrics)
    found, _ = loss_of(name, *batch_of(name, critic=False))
    assert not critic & set(found.metrics)


@every
@reduced
def test_metrics_are_of_the_batch_whatever_it_is_a_part_of(name, reduction):
    batch, output = batch_of(name)
    objective, settings = objectives[name](), settings_of(name, reduction)
    own = objective.loss(batch, output, settings)
    many = {key: 7.0 * count for key, count in objective.num_items(batch).items()}
    part = objective.loss(batch, output, settings, many)
    torch.testing.assert_close(part.loss * 7.0, own.loss)
    torch.testing.assert_close(part.metrics, own.metrics)


@every
def test_coefficients(name):
    """The loss is the sum of its metrics, so the bonus is on entropy and not against it."""
    batch, output = batch_of(name)
    settings = replace(objectives[name].defaults, value_coef=0.7, entropy_coef=0.2)
    found, _ = loss_of(name, batch, output, settings)
    metrics = found.metrics
    expected = metrics["policy_loss"] + 0.7 * metrics["value_loss"] - 0.2 * metrics["entropy"]
    torch.testing.assert_close(found.loss, expected)


@every
def test_one_advantage_a_row_is_the_same_for_all_its_spans(name):
    batch, output = batch_of(name, per_span=False)
    found, _ = loss_of(name, batch, output)
    batch["advantages"] = batch["advantages"][:, None].expand(batch["span_mask"].shape)
    torch.testing.assert_close(found.loss, loss_of(name, batch, output)[0].loss)


@every
def test_tensors_that_do_not_fit(name):
    """Each message names the tensor, its shape and what it should be."""
    kind = objectives[name]
    for key in (*kind.batch_axes, *kind.output_axes):
        batch, output = batch_of(name)
        place = batch if key in batch else output
        if key not in place:
            continue
        original = place[key].detach()
        place[key] = original[:-1]
        with pytest.raises(ObjectiveError, match=r"has shape .*rows"):
            kind().loss(batch, output)
        place[key] = original[..., None, None]
        with pytest.raises(ObjectiveError, match=rf"{key} has shape .*it must be \(B"):
            kind().loss(batch, output)
        if key not in kind.optional or key in ("old_values", "values"):
            del place[key]
            with pytest.raises(ObjectiveError, match=f"{key} is missing"):
                kind().loss(batch, output)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0: give a finite number above 0 and below 1"),
        ({"epsilon": 1.0}, "below 1"),
        ({"epsilon": "0.2"}, "epsilon='0.2'"),
        ({"epsilon_high": -1.0}, "epsilon_high=-1.0"),
        ({"value_epsilon": 0}, "value_epsilon=0"),
        ({"value_coef": -0.5}, "value_coef=-0.5.*at least 0"),
        ({"entropy_coef": float("nan")}, "entropy_coef=nan"),
        ({"entropy_coef": True}, "entropy_coef=True"),
        ({"reduction": "tokens"}, "did you mean 'token'"),
    ],
)
def test_settings_that_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveSettings(**fields)


@every
@reduced
def test_rows_without_anything_count_nowhere(name, reduction):
    """A text that is left out, such as one that could not be judged, is as if it were not there."""
    batch, output = batch_of(name)
    settings = settings_of(name, reduction)
    kept = [0, 1, 3]
    expected = objectives[name]().loss(
        {key: tensor[kept] for key, tensor in batch.items()},
        {key: tensor[kept] for key, tensor in output.items()},
        settings,
    )
    for key in ("span_mask", "completion_mask"):
        if key in batch:
            batch[key][2] = False
    torch.testing.assert_close(objectives[name]().loss(batch, output, settings).loss, expected.loss)
