"""Run by `.ci/run` from another folder: the installed wheel, not the checkout, does the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # what is not in the wheel cannot come from elsewhere
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
listed = subprocess.run(
    [sys.executable, "-m", "hf_rlae.cli.main", "train", "--list"], capture_output=True, text=True, check=True
).stdout
assert "rlae_gsm8k" in listed, "the ready files of `hf-rlae train` are missing from the wheel"

from hf_rlae.zoo import OraclePolicy  # noqa: E402

texts = []
for kind in ("different", "shared"):
    members = hf_rlae.load_demo_members() if kind == "different" else hf_rlae.load_demo_members(kind)
    for member in members:
        folder = Path(member.model.name_or_path).resolve()
        assert folder.is_relative_to(site), f"{member.name} was loaded from {folder}, not {site}"
    ensemble = hf_rlae.EnsembleForCausalLM.from_members(members, OraclePolicy())
    inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
    ids = ensemble.generate(**inputs, max_new_tokens=40, do_sample=False)
    texts.append(ensemble.tokenizer.decode(ids[0], skip_special_tokens=True))
    assert texts[-1] == "7+5*3= 5*3=15; 7+15=22. 22", f"the {kind} members wrote {texts[-1]!r}"
assert "## Limits" in ensemble.model_card("me/ensemble").text, "the template of cards is missing from the wheel"
sys.stdout.write(f"wheel: {len(hf_rlae.__all__)} public names, import in {seconds:.3f} s; members write {texts[0]!r}\n")
