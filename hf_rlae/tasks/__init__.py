"""Floor 2: tasks. A task says where questions come from, how they are asked, and which reward judges the answers.

Every module of this package is imported here, so a new task is a new file and no other change.
"""

import importlib
import pkgutil

from hf_rlae.errors import SplitError, TaskError
from hf_rlae.tasks.definition import BUILT_IN, Example, Task, task, tasks
from hf_rlae.tasks.loading import get_task, list_tasks, load_task
from hf_rlae.tasks.task_row import TaskRow

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BUILT_IN",
    "Example",
    "SplitError",
    "Task",
    "TaskError",
    "TaskRow",
    "get_task",
    "list_tasks",
    "load_task",
    "task",
    "tasks",
]
