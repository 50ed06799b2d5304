"""Settings in cards: what differs from a default, and nothing private."""

from __future__ import annotations

import dataclasses
import json

import pytest
from trl import GRPOConfig

from hf_rlae.cards import changed_settings
from hf_rlae.trainers import CoryConfig, CoryPPOConfig, RLAEConfig, TokenPPOConfig
from hf_rlae.trainers.run_cards import training_settings

CANARY = "canary-private"
PRIVATE = {
    "hub_token": f"hf_{CANARY}aaaaaaaaaaaaaaaaaaaaaa".replace("-", ""),
    "hub_model_id": f"{CANARY}/repo",
    "run_name": CANARY,
    "project": CANARY,
    "trackio_space_id": CANARY,
}
CONFIGS = [RLAEConfig, CoryConfig, CoryPPOConfig, TokenPPOConfig]


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_are_not_shown(kind, tmp_path):
    assert training_settings(kind(str(tmp_path), use_cpu=True, report_to="none")) == {}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_differs_is_shown_and_nothing_private(kind, tmp_path):
    options = {
        **PRIVATE,
        "learning_rate": 0.5,
        "seed": 11,
        "num_generations": 4,
        "generation_kwargs": {"repetition_penalty": 1.5, "cache_dir": f"/home/{CANARY}", "note": f"/home/{CANARY}"},
    }
    if kind is RLAEConfig:
        options["generation_kwargs"] = {"repetition_penalty": 1.5}
    args = kind(str(tmp_path / CANARY), use_cpu=True, report_to="none", **options)
    found = training_settings(args)
    assert found["learning_rate"] == 0.5
    assert found["seed"] == 11
    assert found["num_generations"] == 4 or kind.num_generations == 4
    assert found["generation_kwargs"] == {"repetition_penalty": 1.5}
    text = json.dumps(found)
    for secret in (CANARY, str(tmp_path), PRIVATE["hub_token"]):
        assert secret not in text


def test_fields_that_a_config_fills_in_are_not_settings_of_the_user(tmp_path):
    args = RLAEConfig(str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=16)
    assert args.generation_batch_size is not None
    assert args.advantages == "gae"
    assert set(training_settings(args)) == {"per_device_train_batch_size"}
    given = RLAEConfig(str(tmp_path), use_cpu=True, report_to="none", advantages="group_relative")
    assert training_settings(given) == {"advantages": "group_relative"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://me:secret@host/model", None),  # a password
        ("~/model", None),
        ("C:\\models\\mine", None),
        ("../models", None),
        ("owner/name", "owner/name"),
        ("constant", "constant"),
    ],
)
def test_values_that_name_places_are_left_out(value, shown, tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", chat_template_kwargs={"x": value})
    assert changed_settings(args).get("chat_template_kwargs") == (None if shown is None else {"x": shown})


def test_private_entries_of_dicts_are_left_out():
    @dataclasses.dataclass
    class Config:
        model_init_kwargs: dict | None = None

    given = {"token": "secret", "cache_dir": "cache", "api_key": "secret", "attn_implementation": "sdpa"}
    assert changed_settings(Config(given)) == {"model_init_kwargs": {"attn_implementation": "sdpa"}}
