"""Run by `.ci/run` from another folder: the installed wheel, not the checkout, does the work."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

site = Path(sys.argv[1]).resolve()
started = time.perf_counter()
import hf_rlae  # noqa: E402

seconds = time.perf_counter() - started
assert Path(hf_rlae.__file__).resolve().is_relative_to(site), f"imported from {hf_rlae.__file__}, not {site}"
assert (site / "hf_rlae" / "py.typed").is_file(), "py.typed is missing from the wheel"
assert seconds < 1.0, f"import hf_rlae took {seconds:.2f} s, at most 1 s is allowed"
for name in hf_rlae.__all__:
    getattr(hf_rlae, name)
help_text = subprocess.run(
    [sys.executable, "-m", "hf_rlae.cli.main", "--help"], capture_output=True, text=True, check=True
).stdout
assert "generate" in help_text, help_text
sys.stdout.write(f"wheel: {len(hf_rlae.__all__)} public names, import in {seconds:.3f} s\n")
