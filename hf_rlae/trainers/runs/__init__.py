"""A training from settings alone: a configuration file, overrides, and nothing to program.

`hf-rlae train` calls this package, and so can a script:

    settings = read_settings("rlae", ["--config", "rlae_gsm8k", "--max_steps", "100"])
    trainer = run(settings)
"""

from hf_rlae.trainers.runs.build import build_trainer, run
from hf_rlae.trainers.runs.settings import RunSettings, read_settings

__all__ = ["RunSettings", "build_trainer", "read_settings", "run"]
