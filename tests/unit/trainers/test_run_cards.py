"""What the card of a training tells about its run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_rlae.trainers import run_cards
from hf_rlae.trainers.run_cards import run_evaluations, run_tags, shown_dataset


@pytest.mark.parametrize(
    ("added", "url", "job", "expected"),
    [
        (None, None, False, ["rlae"]),
        ("mine", None, False, ["mine", "rlae"]),
        (["b", "a"], None, True, ["a", "b", "hf_jobs", "rlae"]),
        (["trackio:old"], "https://x.hf.space?project=p", False, ["rlae", "trackio:https://x.hf.space?project=p"]),
    ],
)
def test_the_tags_that_trl_adds_are_kept(monkeypatch, added, url, job, expected):
    monkeypatch.setattr(run_cards, "get_trackio_space_url", lambda: url)
    monkeypatch.delenv("JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("JOB_ID", "1")
    assert run_tags(["rlae"], added) == expected


def trainer_of(*log, baselines=None):
    report = SimpleNamespace(baselines=baselines or {})
    return SimpleNamespace(
        state=SimpleNamespace(log_history=list(log)), callback_handler=SimpleNamespace(callbacks=[object(), report])
    )


def test_the_last_evaluation_is_compared_with_the_first_and_with_baselines():
    log = [{"step": 0, "eval_reward": 0.1}, {"step": 2, "loss": 1.0}, {"step": 4, "eval_reward": 0.5}]
    [found] = run_evaluations(trainer_of(*log, baselines={"uniform": 0.2}), "my data")
    assert (found.dataset, found.value) == ("my data", 0.5)
    assert found.baselines == {"uniform": 0.2, "this model after 0 updates": 0.1}
    assert "after 4 updates" in found.note
    assert run_evaluations(trainer_of({"step": 1, "loss": 1.0}), None) == []
    assert run_evaluations(trainer_of({"step": 1, "eval_reward": None}), None) == []


def test_the_training_data_is_not_taken_for_the_evaluation_data():
    [found] = run_evaluations(trainer_of({"step": 1, "eval_reward": 0.5}), "owner/data")
    assert not found.is_on_hub


def test_names_of_datasets(tmp_path):
    assert shown_dataset("owner/data") == "owner/data"
    assert shown_dataset("my data: v2") == "my data: v2"
    assert shown_dataset(str(tmp_path)) is None
    assert shown_dataset("/home/me/rows.json") is None
    assert shown_dataset(None) is None
