"""What a step of remote members costs beyond the slowest of them: `python -m tests.benchmarks.remote`.

Two Ray actors on this machine each return one vector of 150,000 values after a pause that stands for the forward pass.
Measured are the runs of the package (plain actor calls), and the same answers through Ray's compiled graphs, which take
turns. The goal is 1.0 ms beyond the slowest member, on idle cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from hf_rlae.members import RemoteSharedRun
from hf_rlae.members.remote.host import Worker
from hf_rlae.members.remote.remote_member import RemoteMember, Waiting
from hf_rlae.members.remote.wire import Outputs, packed, unpacked
from tests.support.ray_cluster import local_ray


class Pausing(Worker):
    """A worker whose forward pass is a pause."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self.logits = torch.zeros(1)

    def load(self, source: str, options: dict[str, Any]) -> tuple[Any, ...]:
        """Makes the vector of logits."""
        self.logits = torch.randn(1, 1, options["vocab_size"]).to(getattr(torch, options["dtype"]))
        return "", None

    def ask(self, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Pauses for the time in `keep`, in milliseconds."""
        time.sleep(arguments[0].reads.keep / 1e3)
        return "", Outputs(packed(self.logits), None, 1)


def paused(link: Any) -> Any:
    """What a run needs of a member."""
    member: Any = SimpleNamespace(
        link=link, ended=[], bytes_sent=0, device=torch.device("cpu"), name="paused", worker=True
    )
    member.new_session = lambda: "one"
    member.take_ended = tuple
    member.call = lambda *call: Waiting(member, link.call("ask", *call), 60)
    member.count_received = lambda outputs: None
    member.lose = lambda why: RemoteMember.lose(member, why)
    return member


def main() -> None:
    """Prints one line per way, dtype and pause."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=150_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pauses", type=int, nargs="+", default=[0, 30], help="milliseconds")
    options = parser.parse_args()
    with local_ray():
        import ray
        from ray.dag import InputNode, MultiOutputNode

        from hf_rlae.members.remote.ray_link import RayLink

        links = [RayLink(f"member {k}", {"num_cpus": 0}, "", Pausing) for k in range(2)]
        runs = [RemoteSharedRun(paused(link)) for link in links]
        ids = torch.zeros(1, 1, dtype=torch.long)
        for dtype in ("bfloat16", "float32"):
            about = {"vocab_size": options.vocab_size, "dtype": dtype}
            for link in links:
                link.wait(link.call("load", "", about), 300)
            with InputNode() as given:
                graph = MultiOutputNode([link._actor.ask.bind("exchange", given) for link in links])
                compiled = graph.experimental_compile()

            def plain(pause: int) -> None:
                for run in runs:
                    run.launch(ids, None, pause, False)
                for run in runs:
                    run.read(ids, None, pause, False)

            def in_graph(pause: int) -> None:
                request = SimpleNamespace(reads=SimpleNamespace(keep=pause))
                for _, outputs in ray.get(compiled.execute(request)):  # noqa: B023
                    unpacked(outputs.logits, torch.device("cpu"))

            for pause in options.pauses:
                times = timed({"plain": plain, "compiled": in_graph}, pause, options.steps)
                for way, spent in times.items():
                    median, fast = statistics.median(spent) - pause, sorted(spent)[len(spent) // 10] - pause
                    print(f"{way:<9} {dtype:<9} pause {pause:>2} ms: {median:6.2f} ms beyond it (tenth {fast:.2f})")
            compiled.teardown()


def timed(ways: dict[str, Callable[[int], None]], pause: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each step, the ways taking turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for step in range(steps + 10):
        for way, run in ways.items():
            begun = time.perf_counter()
            run(pause)
            if step >= 10:
                times[way].append((time.perf_counter() - begun) * 1e3)
    return times


if __name__ == "__main__":
    main()
