"""A training from settings alone: a configuration file, overrides, and nothing to program.

`hf-rlae train` calls this package, and so can a script:

    settings = read_settings("rlae", ["--config", "rlae_gsm8k", "--max_steps", "100"])
    trainer = run(settings)
"""

from hf_rlae.trainers.runs.build import build_trainer, run
from hf_rlae.trainers.runs.costs import MemberCost, RunCost, predict_cost
from hf_rlae.trainers.runs.settings import RunSettings, read_settings
from hf_rlae.trainers.runs.tables import TableRow, read_table, run_table, table_text

__all__ = [
    "MemberCost",
    "RunCost",
    "RunSettings",
    "TableRow",
    "build_trainer",
    "predict_cost",
    "read_settings",
    "read_table",
    "run",
    "run_table",
    "table_text",
]
