"""`hf-rlae pull`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from hf_rlae.cli.arguments import check_hub
from hf_rlae.errors import ConfigError

SUMMARY = "download an ensemble or policy from the Hub"
DESCRIPTION = """\
Downloads an ensemble or a policy from the Hugging Face Hub into a folder, which the other commands and
`from_pretrained` accept. Members stay where the ensemble names them, unless the repository holds them. Only data is
downloaded, no code and no pickles.

  hf-rlae pull user/my-policy
  hf-rlae pull user/my-ensemble FOLDER --revision v1.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="such as user/my-ensemble")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="a new one (default: the repository's name)")
    parser.add_argument("--revision", metavar="R", help="a branch, tag or commit (default: main)")


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, downloads, and returns the exit code."""
    folder = Path(args.folder or args.repo_id.rsplit("/", 1)[-1])
    if folder.exists() and not (folder.is_dir() and not os.listdir(folder)):
        raise ConfigError(f"{folder} exists already; give another folder, or remove it first")
    check_hub(f"pull {args.repo_id}")
    importlib.import_module("hf_rlae.cli.hub_transfer").pull(args.repo_id, folder, args.revision)
    return 0
