"""Commands and figures in the documentation are correct."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from hf_rlae.cli.main import build_parser
from hf_rlae.embedded import embedded_names

ROOT = Path(__file__).parents[3]
EMBEDDED = set(embedded_names("members"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def sections(path: Path) -> set[str]:
    """Names by which links reach the headings of a page, as GitHub makes them, and the objects that the site shows."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    objects = re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(objects)


def commands(pages: Sequence[Path] = PAGES) -> list[str]:
    """Every command of hf-rlae, with what is piped into it."""
    texts = [block.replace("\\\n", "") for page in pages for block in blocks(page, "bash")]
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in lines if re.match(r"(echo .* \| )?(\S*/)?hf-rlae ", line)]


def test_there_are_commands():
    assert len(commands()) >= 3


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    arguments = build_parser().parse_args(shlex.split(command.split("| ")[-1])[1:])
    members = getattr(arguments, "members", ["ENSEMBLE"])
    of_readers = (["MEMBER_1", "MEMBER_2"], ["owner/first", "owner/second"], ["ENSEMBLE"], ["pulled"])
    assert members in of_readers or set(members) <= EMBEDDED


def test_the_readme_begins_with_the_demo():
    assert re.findall(r"\S*/hf-rlae .*", blocks(PAGES[0], "bash")[0])[0] == ".venv/bin/hf-rlae demo"


def test_both_readme_commands_use_the_constraints():
    environments = []
    for block in blocks(PAGES[0], "bash"):
        environments += re.findall(
            r"^python3 -m venv (\S+)\n# .*, first: .* torch .*\n\1/bin/pip install -c .ci/constraints.txt -e",
            block,
            re.M,
        )
    assert environments == [".venv", ".venv-test"]
    assert (ROOT / ".ci" / "constraints.txt").is_file()


def test_the_gate_finds_the_test_command():
    after = PAGES[0].read_text().split("<!-- test command -->\n", 1)[1]
    assert after.startswith("```bash\npython3 -m venv .venv-test\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not section or section in sections(linked), f"{target}#{section}"


def test_the_readme_links_every_page():
    assert {path.name for path in PAGES[1:]} <= set(re.findall(r"\]\(docs/([^)#]+)\)", prose(PAGES[0])))


def test_the_picture_shows_what_its_command_prints(shared, capsys):
    page = ROOT / "docs" / "concepts.md"
    (block,) = [block for block in blocks(page, "py") if "MODELS/" in block]
    models = shared("models", "stories260K").parent
    exec(compile(block.replace("MODELS", str(models)), str(page), "exec"), {})
    printed = set(re.findall(r"\d\.\d+", capsys.readouterr().out))
    shown = set(re.findall(r"0\.\d\d\b", (ROOT / "docs" / "images" / "readings.svg").read_text().split("</desc>")[1]))
    shown -= {"0.55"}  # an opacity
    assert shown <= printed
    assert {"0.11", "0.89", "0.23", "0.77"} <= shown


def test_the_page_of_the_command_line_has_every_command_and_option():
    page = (ROOT / "docs" / "cli.md").read_text()
    (subparsers,) = [action for action in build_parser()._actions if action.dest == "command"]
    for name, command in subparsers.choices.items():
        assert re.search(rf"^hf-rlae {name}\b", page, re.MULTILINE), name
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or re.search(rf"{option}(?![\w-])", page), f"{name} {option}"


def test_every_command_has_examples_in_its_help():
    (subparsers,) = [action for action in build_parser()._actions if action.dest == "command"]
    for name, command in subparsers.choices.items():
        assert f"\n  hf-rlae {name}" in command.description, name
