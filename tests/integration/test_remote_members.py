"""Members in Ray actors: the texts of members here, to the bit; processes that die, hang, or are shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, MemberError, MemberLostError, RemoteMember
from tests.support.ensembles import TEXTS, policy_of_text
from tests.support.models import pair
from tests.support.ray_cluster import ENVIRONMENT, local_ray
from tests.support.tokenizers import byte_level_bpe, raw_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed (pip install 'hf_rlae[ray]')"),
]

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = {
    "llama": ("llama", 0, byte_level_bpe),
    "gpt2": ("gpt2", 1, byte_level_bpe),
    "bytes": ("rwkv", 2, raw_bytes),
}
LIMIT_S = 20.0
"""Of a step; a worker that is stopped is given up after it. Long, because other tests use the same cores."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each member in a folder."""
    root, made = tmp_path_factory.mktemp("members"), {}
    for name, (architecture, seed, tokenizer) in MEMBERS.items():
        model, own = pair(architecture, seed, tokenizer())
        made[name] = str(root / name)
        model.save_pretrained(made[name])
        own.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def cluster():
    with local_ray() as context:
        yield context


@pytest.fixture(scope="module")
def workers(cluster, folders):
    """One remote member per folder, for all tests of the module; they load at the same time."""
    members = {
        name: RemoteMember.load(folder, resources={"num_cpus": 0}, timeout=LIMIT_S) for name, folder in folders.items()
    }
    for member in members.values():
        member.connect()
    yield members
    for member in members.values():
        member.close()


def observing(state):
    seen = torch.stack([hidden.float().mean(1) for hidden in state.hidden_states], dim=1)
    return (state.top_logps + seen).softmax(1)


def build(members, policy=policy_of_text, **settings):
    return EnsembleForCausalLM.from_members(members, policy, span_length=3, **settings)


def outputs(ensemble, *texts, **options):
    inputs = ensemble.tokenizer(list(texts), return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=9, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits, 1).nan_to_num()


def assert_same(one, other):
    for got, expected in zip(one, other, strict=True):
        assert torch.equal(got, expected)


CALLS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "do_sample": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "do_sample": False},
}


@pytest.mark.parametrize("names", [("llama", "gpt2"), ("gpt2", "bytes")], ids=["one tokenizer", "different"])
@pytest.mark.parametrize("policy", [policy_of_text, observing], ids=["text", "observes"])
def test_remote_members_write_what_members_here_write(workers, folders, names, policy):
    here = build([folders[name] for name in names], policy)
    there = build([workers[name] for name in names], policy)
    for name, options in CALLS.items():
        texts = TEXTS[:1] if name == "prompt lookup" else TEXTS
        assert_same(outputs(there, *texts, **options), outputs(here, *texts, **options))


@pytest.mark.parametrize("names", [("llama", "gpt2"), ("gpt2", "bytes")], ids=["one tokenizer", "different"])
def test_two_calls_at_once(workers, folders, names):
    here = build([folders[name] for name in names])
    there = build([workers[name] for name in names])
    expected = [outputs(here, text, do_sample=False) for text in TEXTS[:2]]
    found = [None, None]

    def run(index):
        found[index] = outputs(there, TEXTS[index], do_sample=False)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


def killing(member, number):
    """A policy whose call `number` sends a signal to the worker of a member."""
    calls = []

    def policy(state):
        calls.append(state)
        if len(calls) == 2:
            os.kill(member.worker.pid, number)
        return policy_of_text(state)

    return policy


@pytest.mark.parametrize(
    ("first", "number", "message"),
    [
        ("llama", signal.SIGKILL, "has ended"),
        ("bytes", signal.SIGKILL, "has ended"),
        ("llama", signal.SIGSTOP, rf"has not answered within {LIMIT_S:g} s"),
    ],
    ids=["killed, one tokenizer", "killed, different tokenizers", "hangs"],
)
def test_a_worker_that_is_lost_in_decode(workers, folders, first, number, message):
    member = workers["gpt2"]
    ensemble = build([folders[first], member], killing(member, number))
    begun = time.monotonic()
    with pytest.raises(MemberLostError, match=f"the worker of member .*gpt2 {message}"):
        outputs(ensemble, *TEXTS, do_sample=False, min_new_tokens=9)
    assert time.monotonic() - begun < 3 * LIMIT_S
    member.restart()
    assert_same(
        outputs(build([folders[first], member]), *TEXTS, do_sample=False),
        outputs(build([folders[first], folders["gpt2"]]), *TEXTS, do_sample=False),
    )


def test_a_worker_that_is_killed_while_it_reads_the_prompt_and_dropped(workers, folders):
    """It is stopped, so that the call is under way when it is killed; the other member goes on alone."""
    member = workers["gpt2"]
    ensemble = build([folders["llama"], member], on_lost_member="drop")
    os.kill(member.worker.pid, signal.SIGSTOP)
    timer = threading.Timer(1.0, os.kill, (member.worker.pid, signal.SIGKILL))
    timer.start()
    found = outputs(ensemble, *TEXTS, do_sample=False)
    timer.join()
    assert "has ended" in member.lost
    torch.testing.assert_close(found[0], outputs(build([folders["llama"]]), *TEXTS, do_sample=False)[0])
    member.restart()


def test_resources_that_nobody_has(cluster, folders):
    member = RemoteMember.load(folders["llama"], resources={"resources": {"nowhere": 1}}, start_timeout=2)
    with pytest.raises(MemberError, match=r"has not answered within 2 s.*resources"):
        member.connect()


RANK = """
import json, os, sys
import ray, torch
from hf_rlae import EnsembleForCausalLM

ray.init(address=sys.argv[1], namespace="mine", log_to_driver=False, logging_level="error")
ensemble = EnsembleForCausalLM.from_members(sys.argv[2:4], placement="ray", resources={"num_cpus": 0})
found = []
for text in json.loads(sys.argv[4]):
    inputs = ensemble.tokenizer([text], return_tensors="pt")
    found.append(ensemble.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist())
print(json.dumps({"pids": [member.worker.pid for member in ensemble.members], "found": found}), flush=True)
sys.stdin.readline()  # the first rank, which owns the actors, ends last
"""


def test_ranks_of_a_training_share_the_workers_and_their_texts_do_not_mix(cluster, folders):
    names = ("llama", "gpt2")
    texts = [[f"{text} {rank} {n}" for n in range(3) for text in TEXTS] for rank in range(2)]
    ranks = []
    for rank in (1, 0):
        environment = {**os.environ, **ENVIRONMENT, "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": "29517", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RANK, cluster.address_info["gcs_address"]]
        command += [*(folders[name] for name in names), json.dumps(texts[rank])]
        ranks.append(subprocess.Popen(command, env=environment, text=True, stdin=-1, stdout=-1))
    printed = [json.loads(process.stdout.readline()) for process in ranks]
    for process in ranks:
        process.communicate("\n")
    assert printed[0]["pids"] == printed[1]["pids"]
    here = build([folders[name] for name in names], None)
    for entry, own in zip(printed, (texts[1], texts[0]), strict=True):
        for ids, text in zip(entry["found"], own, strict=True):
            inputs = here.tokenizer([text], return_tensors="pt")
            assert ids == here.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist()


DRIVER = """
import os, sys
import ray
from hf_rlae import EnsembleForCausalLM

ray.init(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False, _temp_dir=sys.argv[2])
ensemble = EnsembleForCausalLM.from_members([sys.argv[1]], placement="ray", resources={"num_cpus": 0})
print(ensemble.members[0].worker.pid, flush=True)
sys.stdin.readline()
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_process_outlives_its_parent(folders, tmp_path_factory):
    """Killed, the parent cannot end them itself."""
    scratch = tmp_path_factory.mktemp("r")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, folders["llama"], str(scratch)]
    driver = subprocess.Popen(command, env=environment, text=True, stdin=-1, stdout=-1)
    worker = int(driver.stdout.readline())
    started = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and str(scratch) in command_line(pid)]
    assert alive(worker)
    assert started
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, [worker, *started])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [pid for pid in [worker, *started] if alive(pid)] == []


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


TWO_NODES = """
import sys
import ray
from ray.cluster_utils import Cluster
from hf_rlae import EnsembleForCausalLM

small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
cluster.add_node(**small, resources={"second": 1})
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
places = [{"num_cpus": 0}, {"num_cpus": 0, "resources": {"second": 1}}]
ensemble = EnsembleForCausalLM.from_members(sys.argv[1:3], placement="ray", resources=places)
inputs = ensemble.tokenizer([sys.argv[3]], return_tensors="pt")
print(len(ray.nodes()), ray.cluster_resources()["second"])
print(ensemble.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist())
ray.shutdown()
cluster.shutdown()
"""


def test_members_on_two_nodes(folders):
    """Two nodes of Ray on this machine; the second member is on the second one, which alone has its resource."""
    names = ("llama", "gpt2")
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TWO_NODES, *(folders[name] for name in names), TEXTS[0]]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    nodes, ids = done.stdout.splitlines()[-2:]
    assert nodes.split() == ["2", "1.0"]
    here = build([folders[name] for name in names], None)
    inputs = here.tokenizer([TEXTS[0]], return_tensors="pt")
    assert json.loads(ids) == here.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist()
