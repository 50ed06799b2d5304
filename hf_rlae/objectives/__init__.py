"""Floor 2: objectives. They compute a loss from a rollout and the policy's current output, as pure functions of
tensors.

Every module of this package that registers an objective is imported here, so a new objective is a new file and no other
change.
"""

import importlib
import pkgutil

from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.advantages import gae, group_relative, terminal_rewards, whiten
from hf_rlae.objectives.mixture import mixture_logps
from hf_rlae.objectives.objective import Objective, ObjectiveOutput, objectives
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.objectives.spans import scatter_spans, spans_of_tokens

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Objective",
    "ObjectiveError",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "gae",
    "group_relative",
    "mixture_logps",
    "objectives",
    "scatter_spans",
    "spans_of_tokens",
    "terminal_rewards",
    "whiten",
]
