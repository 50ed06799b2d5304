"""`hf-rlae push`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib

from hf_rlae.cli.arguments import check_hub, saved_kind
from hf_rlae.errors import ConfigError

SUMMARY = "upload a saved ensemble or policy to the Hub"
DESCRIPTION = """\
Uploads a saved ensemble or policy to the Hugging Face Hub: settings, policy, card, and each member by its id and
commit. Members' weights are uploaded with --save-members only. Log in with `hf auth login` first.

  hf-rlae push ENSEMBLE user/my-ensemble --private
  hf-rlae push POLICY user/my-policy --message "Trained on GSM8K"
  hf-rlae push ENSEMBLE user/my-ensemble --save-members
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("folder", metavar="FOLDER", help="that `save_pretrained` of an ensemble or policy wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="such as user/my-ensemble; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository for yourself alone")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to upload to (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--save-members", action="store_true", help="upload members that are not on the Hub, too")
    outside = "load members in folders outside of the saved ensemble's own, whose config names them"
    parser.add_argument("--allow-outside", action="store_true", help=outside)


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, uploads, and returns the exit code."""
    kind = saved_kind(args.folder)
    if args.save_members and kind == "policy":
        raise ConfigError(f"--save-members: {args.folder} is a policy, which has no members; leave it out")
    check_hub(f"push to {args.repo_id}")
    importlib.import_module("hf_rlae.cli.hub_transfer").push(args, kind)
    return 0
