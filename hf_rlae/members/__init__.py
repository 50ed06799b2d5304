"""Floor 2: one member at run time."""

from hf_rlae.members.hidden_states import ColumnStates
from hf_rlae.members.member import Member
from hf_rlae.members.probe import choose_runner
from hf_rlae.members.prompt_logps import prompt_logps
from hf_rlae.members.ragged_run import RowRunner, SlotRunner
from hf_rlae.members.readings.run import ReadingsRelay
from hf_rlae.members.readings.state import Update
from hf_rlae.members.readings.update_sums import Measurement
from hf_rlae.members.shared_run import LockstepRelay, OwnPromptRelay, SeparateRowsRelay

__all__ = [
    "ColumnStates",
    "LockstepRelay",
    "Measurement",
    "Member",
    "OwnPromptRelay",
    "ReadingsRelay",
    "RowRunner",
    "SeparateRowsRelay",
    "SlotRunner",
    "Update",
    "choose_runner",
    "prompt_logps",
]
