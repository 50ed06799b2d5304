"""The runs of the study of costs: baselines, routers and pickers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.policies import StaticPolicy
from hf_rlae.zoo import MEMBER_SETS, OraclePolicy, load_demo_members
from hf_rlae.zoo.loader import MEMBERS_FOLDER
from tests.studies.cost.routers import RouterTraining, ThriftyOracle, answers, questions_of, train_router

MEMBERS = "shared"
RELATIVE_PRICES = (1.0, 1.0, 10.0)
"""Of a token of each member."""
PRICES = (0.0, 0.001, 0.003, 0.01, 0.03)
"""Of a token of a member with the relative price 1, in units of the reward: 1 for a right answer."""
KINDS = ("mixed", "one operator")
FREE: dict[str, Callable[[], Any]] = {
    "equal weights": lambda: StaticPolicy([1, 1, 1]),
    "oracle": OraclePolicy,
    "thrifty oracle": ThriftyOracle,
    **{
        f"{name} alone": lambda place=place: StaticPolicy([float(index == place) for index in range(3)])
        for place, name in enumerate(MEMBER_SETS[MEMBERS])
    },
}
"""Policies that are not trained."""
ROUTER_WAYS: dict[str, dict[str, Any]] = {
    "mixed": {},
    "largest weight": {"max_active_members": 1},
    "drawn": {"draw": "span"},
}


@dataclass(frozen=True)
class CostRun:
    """One thing to measure.

    Attributes:
        method (`str`): of `FREE`, `"supervised router"`, `"router"` or `"picker"`.
        price (`float`): of `PRICES`, for routers.
        kind (`str`): the questions on which a picker is trained; routers are trained on mixed ones.
        seed (`int`): of the training.
    """

    method: str
    price: float = 0.0
    kind: str = "mixed"
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its file."""
        price = f"-price{self.price:g}" if self.method == "router" else ""
        kind = f"-{self.kind}" if self.method == "picker" else ""
        return f"{self.method}{price}{kind}-seed{self.seed}".replace(" ", "_")

    def training(self, settings: dict[str, Any]) -> RouterTraining | None:
        """How a policy is trained; `None` where nothing is trained."""
        if self.method in FREE:
            return None
        if self.method == "picker":
            return RouterTraining(
                (0.0,) * 3, 0, 0, ((1, 0.4), (2, 0.3), (3, 0.3)), settings["picker_rollouts"], learning_rate=1e-2
            )
        prices = tuple(self.price * relative for relative in RELATIVE_PRICES)
        rollouts = settings["router_rollouts"] if self.method == "router" else 0
        stages = ((1, 0.2), (2, 0.4), (3, 0.4))
        epochs, questions = settings["supervised_epochs"], settings["supervised_questions"]
        return RouterTraining(prices, epochs, questions, stages, rollouts, advantages="group_relative")

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains if there is something to train, then answers the test questions in every way.

        Returns:
            `dict`: `answers` (by kind of questions and way, see `answers`), `accuracy` (of the first), `log` (of the
            rollouts), and for pickers `loaded` (how many members were loaded to answer questions with `+` alone).
        """
        members = load_demo_members(MEMBERS)
        training = self.training(settings)
        log: list[dict[str, float]] = []
        ways: dict[str, dict[str, Any]] = {"": {}}
        if training is None:
            policy: Any = FREE[self.method]()
        elif self.method == "picker":
            policy, log = train_router(members, self.kind, training, self.seed, None)
            ways = {f"k = {k}": {"select": "prompt", "max_active_members": k} for k in (1, 2)}
        else:
            policy, log = train_router(members, "mixed", training, self.seed, 1)
            ways = ROUTER_WAYS
        found: dict[str, Any] = {}
        for kind in [self.kind] if self.method == "picker" else KINDS:
            questions = questions_of(kind, settings["questions"], "test")
            found[kind] = {}
            for way, options in ways.items():
                ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=1, **options)
                found[kind][way] = answers(ensemble, questions, self.seed if "draw" in options else None)
        first = next(iter(next(iter(found.values())).values()))["right"]
        more = {"loaded": _loaded(policy)} if self.method == "picker" and self.kind == "one operator" else {}
        return {"answers": found, "accuracy": first.count("1") / len(first), "log": log, **more}


def _loaded(policy: Any) -> int:
    """How many members, given by their folders, are loaded to answer questions with `+` alone."""
    folders = [str(MEMBERS_FOLDER / name) for name in MEMBER_SETS[MEMBERS]]
    ensemble = EnsembleForCausalLM.from_members(folders, policy, select="prompt", max_active_members=1)
    answers(ensemble, [q for q in questions_of("one operator", 30, "test") if set(q.operators) == {"+"}], None)
    lazy: Any = ensemble.members
    return sum(member.is_loaded for member in lazy)


def plan(seeds: int, prices: Sequence[float]) -> list[CostRun]:
    """All runs, the cheap ones first."""
    runs = [CostRun(method) for method in FREE]
    for seed in range(seeds):
        runs += [CostRun("picker", kind=kind, seed=seed) for kind in KINDS]
        runs.append(CostRun("supervised router", seed=seed))
        runs += [CostRun("router", price, seed=seed) for price in prices]
    return runs
