"""Floor 2: one member at run time."""

from hf_rlae.member.choosing import choose_runner
from hf_rlae.member.hidden_states import ColumnStates
from hf_rlae.member.lockstep import LockstepRelay, OwnPromptRelay, SeparateRowsRelay
from hf_rlae.member.measurement import Measurement
from hf_rlae.member.member import Member
from hf_rlae.member.prompt_logps import prompt_logps
from hf_rlae.member.reading_state import Update
from hf_rlae.member.readings import ReadingsRelay
from hf_rlae.member.runners import RowRunner, SlotRunner

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
