"""What `diagnose` says of language models by domain.

`python -m tests.studies.diagnoses --models A B --data DIR --output FILE` writes one table.

The texts are those on which the study of real language models trains its policies (`tests.studies.real_llms`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_rlae import Diagnosis, EnsembleForCausalLM, diagnose
from hf_rlae.errors import present
from hf_rlae.files import write_whole
from tests.studies.real_llms_texts import read_sets

HEADINGS = ("texts", "best member", "bits per byte", "equal weights", "tuned weights", "linear policy beyond them",
            "oracle per text", "oracle per span", "time ratio", "recommendation")  # fmt: skip


def row_of(name: str, found: Diagnosis) -> tuple[str, ...]:
    """A set's line of the table: the bits per byte of its best member, and differences to them."""
    report = present(found.texts, "the texts")
    gains = {row.method: row.difference for row in report.results}
    told = (f"{gains[method]:+.3f}" for method in ("oracle per text", "oracle per span"))
    weights = ", ".join(f"{weight:.2f}" for weight in found.weights.values())
    return (
        name,
        found.best_member,
        f"{report.result(found.best_member).value:.3f}",
        f"{gains['equal weights']:+.3f}",
        f"{gains['tuned weights']:+.3f} ({weights})",
        f"{gains['linear policy'] - gains['tuned weights']:+.3f}",
        *told,
        f"{found.facts['time_ratio']:.2f}",
        found.recommendation,
    )


def main() -> None:
    """Diagnoses every set and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--characters", type=int, default=240)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    sets = read_sets(options.data, {"train": options.texts, "validation": 1, "test": 1}, options.characters)
    ensemble = EnsembleForCausalLM.from_members(options.models, dtype=options.dtype)
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    advice = []
    for name, texts in sets.items():
        found = diagnose(ensemble, [{"text": text} for text in texts["train"]])
        lines.append(row_of(name, found))
        advice.append(f"* {name}: {found.advice}\n")
        write_whole(options.output, "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" + "".join(advice))


if __name__ == "__main__":
    main()
