"""Plants faults in a copy of the package, one at a time, and runs the nearest tests, which must notice each one.

python -m tests.faults          # all, a few minutes
python -m tests.faults 3 17     # these
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAILED = 1  # pytest's exit code if tests failed; other codes mean that none ran


@dataclass(frozen=True)
class Fault:
    """A fault: in a file of `hf_rlae`, the first `old` becomes `new`; `tests` are the nearest ones."""

    file: str
    old: str
    new: str
    tests: str


FAULTS = [
    Fault(
        "ensemble/spans.py",
        "((column + 1 - self.starts) // self.span_length).clamp(min=0)",
        "((column - self.starts) // self.span_length).clamp(min=0)",
        "tests/unit/ensemble/test_spans.py tests/unit/ensemble/test_same_tokenizer_laws.py",
    ),
    Fault(
        "ensemble/spans.py",
        "return max(0, (column + 1 - start) // self.span_length)",
        "return max(0, (column + 2 - start) // self.span_length)",
        "tests/unit/ensemble/test_spans.py",
    ),
    Fault(
        "ensemble/spans.py",
        "SpanQuery(shared + span * self.span_length - 1, span, None)",
        "SpanQuery(shared + span * self.span_length, span, None)",
        "tests/unit/ensemble/test_spans.py",
    ),
    Fault(
        "ensemble/mixing/registry.py",
        "weight * z.masked_fill(weight == 0, 0.0)",
        "z.masked_fill(weight == 0, 0.0)",
        "tests/unit/ensemble/test_same_tokenizer_laws.py",
    ),
    Fault(
        "ensemble/mixing/linear.py",
        "log_weights[..., index] - z + total_shift",
        "log_weights[..., index] + total_shift",
        "tests/unit/ensemble/test_same_tokenizer_laws.py",
    ),
    Fault(
        "ensemble/mixing/linear.py",
        "mixed.add_(prob.mul_(weights[..., index, None]))",
        "mixed.add_(prob)",
        "tests/unit/ensemble/test_different_tokenizers.py",
    ),
    Fault(
        "ensemble/mixing/log.py",
        "(shift(log_z, weights) - total)[..., None]",
        "shift(log_z, weights)[..., None]",
        "tests/unit/ensemble/test_same_tokenizer_laws.py",
    ),
    Fault(
        "policies/weights.py",
        "    shares = weights / total\n",
        "    shares = weights\n",
        "tests/unit/ensemble/test_bad_input.py tests/unit/policies",
    ),
    Fault(
        "policies/weights.py",
        "keep &= weights >= min_weight",
        "keep &= weights > 0",
        "tests/unit/ensemble/test_zero_weights.py hf_rlae/policies/weights.py",
    ),
    Fault(
        "policies/weights.py",
        "good = torch.isfinite(weights) & (weights >= 0) &",
        "good = torch.isfinite(weights) &",
        "tests/unit/ensemble/test_bad_input.py",
    ),
    Fault(
        "policies/static.py",
        "[value / total for value in values]",
        "values",
        "tests/unit/ensemble/test_bad_input.py tests/unit/ensemble/test_same_tokenizer_laws.py",
    ),
    Fault(
        "ensemble/trace.py",
        "self.pending.rows = rows if self.pending.rows is None else self.pending.rows[rows]",
        "pass",
        "tests/unit/ensemble/test_trace.py",
    ),
    Fault(
        "ensemble/draws.py",
        "fresh = weights.gather(1, current[:, None])[:, 0] == 0",
        "fresh = torch.zeros(len(weights), dtype=torch.bool)",
        "tests/unit/ensemble/test_draws.py",
    ),
    Fault(
        "ensemble/generation_ensemble.py",
        "            cache.end_generate()\n",
        "            pass\n",
        "tests/unit/ensemble/test_cache.py tests/unit/ensemble/test_state.py",
    ),
    Fault(
        "policies/entropy.py",
        "(-state.entropies / self.temperature)",
        "(state.entropies / self.temperature)",
        "tests/unit/policies/test_training_free.py",
    ),
    Fault(
        "members/ragged_cache.py",
        "indices = self.indices.masked_fill(self.indices < 0, capacity - 1)",
        "indices = self.indices.clamp(min=0)",
        "tests/unit/members/test_ragged_rows.py tests/unit/ensemble/test_different_tokenizers.py",
    ),
    Fault(
        "members/readings/step.py",
        "            end = r + others * self.end_sum\n",
        "            end = others * self.end_sum\n",
        "tests/unit/members/readings",
    ),
    Fault(
        "members/readings/step.py",
        "        if self.lent_sum <= 0:\n",
        "        if True:\n",
        "tests/unit/members/readings/test_readings_grains.py",
    ),
    Fault(
        "members/readings/step.py",
        "            if is_restricted and lent * own > 0:\n",
        "            if False:\n",
        "tests/unit/members/readings/test_readings_grains.py",
    ),
    Fault(
        "members/readings/step.py",
        "            stay = scale * sums[after + 2]\n",
        "            stay = scale * sums[after + 1]\n",
        "tests/unit/members/readings",
    ),
    Fault(
        "vocabulary/union.py",
        "for length in range(min(len(raw), self.max_piece), 0, -1):",
        "for length in range(1, min(len(raw), self.max_piece) + 1):",
        "tests/unit/vocabulary tests/unit/members/readings",
    ),
    Fault(
        "objectives/advantages.py",
        "delta = rewards[:, span] + gamma * next_value - values[:, span]",
        "delta = rewards[:, span] + next_value - values[:, span]",
        "tests/unit/objectives",
    ),
    Fault(
        "objectives/advantages.py",
        "delta + gamma * lam * advantage",
        "delta + gamma * advantage",
        "tests/unit/objectives",
    ),
    Fault(
        "objectives/surrogate.py",
        "-torch.minimum(ratio * gain, ratio.clamp(low, high) * gain)",
        "-torch.maximum(ratio * gain, ratio.clamp(low, high) * gain)",
        "tests/unit/objectives",
    ),
    Fault(
        "objectives/spans.py",
        "(mask.cumsum(1) - 1) // span_length",
        "mask.cumsum(1) // span_length",
        "tests/unit/objectives",
    ),
    Fault(
        "rewards/answer_part.py",
        "    if start is None:\n        return None\n",
        "    if start is None:\n        start = 0\n",
        "tests/unit/rewards/test_answer_part.py",
    ),
    Fault(
        "rewards/answer_part.py",
        "    end = _next_question(text, folded, start, is_answer)\n",
        "    end = len(text)\n",
        "tests/unit/rewards/test_answer_part.py",
    ),
    Fault(
        "rewards/letter_reader.py",
        "return _NEGATION.search(content[max(0, at - 40) : at]) is not None",
        "return False",
        "tests/unit/rewards/test_letter_rule.py",
    ),
    Fault(
        "rewards/contract.py",
        "REWARD_LIMIT = 1e15",
        "REWARD_LIMIT = 1e38",
        "tests/unit/rewards/calls tests/unit/rewards/test_weighted_sums.py",
    ),
    Fault(
        "trainers/durable/manifest.py",
        "        elif path.stat().st_size != size:\n",
        "        elif path.stat().st_size > size:\n",
        "tests/unit/trainers/durable",
    ),
    Fault(
        "trainers/rlae/rollouts.py",
        "[seed_of(seeds[row], 0) for row in rows.tolist()]",
        "[seed_of(seeds[0], row) for row in rows.tolist()]",
        "tests/unit/trainers/rlae/test_rollout_batches.py",
    ),
    Fault(
        "trainers/rlae/batch_shrinking.py",
        "device=self.lengths.device) < self.lengths[:, None]",
        "device=self.lengths.device) < self.lengths[:, None] - 1",
        "tests/unit/trainers/rlae/test_rollouts.py",
    ),
    Fault(
        "policies/heads.py",
        "self.critic(features.detach(), ",
        "self.critic(features, ",
        "tests/unit/policies/test_critic.py",
    ),
    Fault(
        "trainers/rlae/trainer.py",
        "values = self.value_scale.in_rewards(rollouts.old_values)",
        "values = rollouts.old_values",
        "tests/integration/trainers/test_rlae_critic.py",
    ),
    Fault(
        "trainers/rlae/resuming.py",
        'self.value_scale = ValueScale(**state["value_scale"])',
        "pass",
        "tests/integration/trainers/test_rlae_resume.py",
    ),
    Fault(
        "files.py",
        "        os.replace(name, path)\n",
        "        path.write_bytes(raw)\n",
        "tests/unit/test_files.py",
    ),
    Fault(
        "rewards/sandbox/lockdown.py",
        "landlock.restrict(cell.rules)",
        "pass",
        "tests/unit/rewards/sandbox/test_isolation.py",
    ),
    Fault(
        "rewards/sandbox/seccomp.py",
        '"getppid": 110,',
        '"getppid": 110, "chmod": 90,',
        "tests/unit/rewards/sandbox/test_isolation.py",
    ),
    Fault(
        "rewards/sandbox/seccomp.py",
        "_X32 = 0x40000000",
        "_X32 = 0x7FFFFFFF",
        "tests/unit/rewards/sandbox/test_seccomp.py",
    ),
    Fault(
        "rewards/sandbox/running.py",
        "return Outcome.KILLED",
        "return Outcome.EXITED",
        "tests/unit/rewards/sandbox/test_pool.py",
    ),
    Fault(
        "rewards/sandbox/zygote.py",
        "if self.caller in heard or",
        "if",
        "tests/unit/rewards/sandbox/test_pool.py",
    ),
    Fault(
        "rewards/sandbox/pool.py",
        "os.register_at_fork(after_in_child=_after_fork)",
        "pass",
        "tests/unit/rewards/sandbox/test_pool.py",
    ),
    Fault(
        "rewards/sandbox/pool.py",
        "if holes and backend != backends.UNSAFE:",
        "if False:",
        "tests/unit/rewards/sandbox/test_pool.py",
    ),
    Fault(
        "rewards/sandbox/folders.py",
        "prefix = secrets.token_hex(16)",
        'prefix = "moved"',
        "tests/unit/rewards/sandbox/test_folders.py",
    ),
    Fault(
        "rewards/sandbox/values.py",
        "kind = type(value)\n    if len(out)",
        "kind = next((each for each in type(value).__mro__ if each in _SCALARS), type(value))\n    if len(out)",
        "tests/unit/rewards/sandbox/test_values.py",
    ),
    Fault(
        "rewards/sandbox/values.py",
        "if number > len(self.data) - self.at:",
        "if False:",
        "tests/unit/rewards/sandbox/test_values.py",
    ),
    Fault(
        "rewards/sandbox/tests_role.py",
        "and not issubclass(kind, _ENDS)",
        "",
        "tests/unit/rewards/sandbox/test_judge.py",
    ),
    Fault(
        "rewards/sandbox/tests_role.py",
        "return Attribute(number, known, self._link)",
        "return Opaque(number, known, self._link)",
        "tests/unit/rewards/sandbox/test_judge.py",
    ),
    Fault(
        "rewards/sandbox/judge.py",
        "None if ended.outcome.is_infrastructure else False",
        "False",
        "tests/unit/rewards/sandbox/test_judge.py",
    ),
    Fault(
        "rewards/sandbox/used_names.py",
        "if name in defined or name not in _BUILTINS",
        "",
        "tests/unit/rewards/sandbox/test_used_names.py",
    ),
    Fault(
        "rewards/code_part.py",
        "int(places[-1])",
        "int(places[0])",
        "tests/unit/rewards/test_code_part.py",
    ),
]


def is_noticed(fault: Fault, copy: Path) -> bool:
    """Whether a test fails. The copy is as before afterwards."""
    path = copy / "hf_rlae" / fault.file
    text = path.read_text(encoding="utf-8")
    if fault.old not in text:
        raise SystemExit(f"{fault.file} has no {fault.old!r} any more; plant another fault")
    path.write_text(text.replace(fault.old, fault.new, 1), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *fault.tests.split()], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        path.write_text(text, encoding="utf-8")
    return done.returncode == FAILED


def main(arguments: list[str]) -> int:
    wanted = [int(argument) for argument in arguments] or range(1, len(FAULTS) + 1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("hf_rlae", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        noticed = 0
        for number in wanted:
            fault = FAULTS[number - 1]
            is_found = is_noticed(fault, copy)
            noticed += is_found
            print(f"{number:>2} {'noticed' if is_found else 'MISSED '} {fault.file}: {fault.new.strip()!r}", flush=True)
    print(f"figure: {noticed} of {len(wanted)} planted faults noticed")
    return 0 if noticed == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
