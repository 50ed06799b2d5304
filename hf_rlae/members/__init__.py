"""Floor 2: one member of an ensemble at run time."""

from hf_rlae.members.chosen_rows import ChosenRowsRun
from hf_rlae.members.compiled_steps import StaticCaches, use_static_caches
from hf_rlae.members.hidden_states import ColumnStates
from hf_rlae.members.images import GivenImages, PromptImages, encode_images, encoder_arguments
from hf_rlae.members.lazy_member import LazyMember, LazyRunner
from hf_rlae.members.look_ahead import mean_state_ahead, readings_ahead
from hf_rlae.members.member import Member
from hf_rlae.members.own_prompt import OwnPromptRun
from hf_rlae.members.probe import choose_runner
from hf_rlae.members.prompt_logps import prompt_logps
from hf_rlae.members.ragged_run import BatchRunner
from hf_rlae.members.readings.run import Launched, ReadingsRun
from hf_rlae.members.readings.state import RowReadings, Update
from hf_rlae.members.readings.update_sums import PendingSums, UpdateSums, read_together, weigh_inside
from hf_rlae.members.remote.remote_member import RemoteMember
from hf_rlae.members.remote.runs import RemoteRunner, RemoteSharedRun
from hf_rlae.members.row_runner import RowRunner
from hf_rlae.members.separate_rows import SeparateRowsRun, new_shared_run
from hf_rlae.members.shared_run import SharedRun

__all__ = [
    "BatchRunner",
    "ChosenRowsRun",
    "ColumnStates",
    "GivenImages",
    "Launched",
    "LazyMember",
    "LazyRunner",
    "Member",
    "OwnPromptRun",
    "PendingSums",
    "PromptImages",
    "ReadingsRun",
    "RemoteMember",
    "RemoteRunner",
    "RemoteSharedRun",
    "RowReadings",
    "RowRunner",
    "SeparateRowsRun",
    "SharedRun",
    "StaticCaches",
    "Update",
    "UpdateSums",
    "choose_runner",
    "encode_images",
    "encoder_arguments",
    "mean_state_ahead",
    "new_shared_run",
    "prompt_logps",
    "read_together",
    "readings_ahead",
    "use_static_caches",
    "weigh_inside",
]
