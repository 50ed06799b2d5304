"""Results are kept, never mixed, and compared with intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_rlae.errors import ConfigError
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.results import ResultFolder


def test_results_say_where_they_come_from(tmp_path):
    ResultFolder(tmp_path / "study", {"questions": 4})
    kept = json.loads((tmp_path / "study" / "settings.json").read_text())
    assert kept["settings"] == {"questions": 4}
    assert {"torch", "transformers", "hf_rlae"} <= set(kept["versions"])
    assert kept["cpus"] >= 1


def test_a_folder_goes_on_with_the_same_settings_only(tmp_path):
    first = ResultFolder(tmp_path, {"questions": 4, "lengths": (1, 2)})
    first.write("run", {"right": "0110"})
    assert ResultFolder(tmp_path, {"questions": 4, "lengths": [1, 2]}).read("run") == {"right": "0110"}
    with pytest.raises(ConfigError, match="questions"):
        ResultFolder(tmp_path, {"questions": 5, "lengths": [1, 2]})


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Of 100 samples of two coins whose difference is 0.3, about 95 intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        shared = rng.random((1, 120))
        first, second = (shared < 0.7).astype(float), (shared < 0.4).astype(float)
        low, high = paired_bootstrap([first, second], lambda a, b: a - b, resamples=300, seed=seed)
        held += low <= 0.3 <= high
    assert 88 <= held <= 100


def test_pairing_makes_intervals_narrow():
    rng = np.random.default_rng(1)
    first = (rng.random((1, 200)) < 0.5).astype(float)
    worse = first.copy()
    worse[0, np.flatnonzero(first[0])[:5]] = 0.0
    low, high = paired_bootstrap([first, worse], lambda a, b: a - b)
    assert 0.0 < low < 0.025 < high < 0.06


def test_seeds_are_resampled_too():
    same, apart = np.tile([0.5], (4, 100)), np.repeat([[0.0], [1.0], [0.0], [1.0]], 100, axis=1)
    assert paired_bootstrap([same], float) == (0.5, 0.5)
    low, high = paired_bootstrap([apart], float)
    assert low < 0.1
    assert high > 0.9
