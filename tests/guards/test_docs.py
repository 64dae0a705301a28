"""Documentation says what is there: links, paths, symbols, commands, and the output that it prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rorqual.cli import main as cli
from tests.guards import tree

PAGES = [tree.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((tree.ROOT / "docs").rglob("*.md"))
ROWS = [line for line in (tree.ROOT / "docs" / "report_map.md").read_text().splitlines() if line.startswith("|") and "`" in line]
VERBS = {verb for verbs in cli.VERBS.values() for verb in verbs}


def _page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(page):
    text = _page(page)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:rorqual|tests|docs|benchmarks|examples)/[\w./-]*)`", text):
        assert (tree.ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip() + " " + row.split("|")[2].strip())
def test_report_map_names_what_exists(row):
    *_, path, symbol = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
    file = tree.ROOT / path
    assert file.is_file(), f"{path} is gone"
    assert not symbol or symbol in tree.symbols(file), f"{path} has no {symbol}"


def test_report_map_reaches_every_room_of_the_report():
    mapped = {Path(path).parts[1] for path in re.findall(r"`(rorqual/[\w/.]+)`", "\n".join(ROWS))}
    rooms = {
        path.relative_to(tree.PACKAGE).parts[0]
        for path in tree.sources()
        if len(path.relative_to(tree.PACKAGE).parts) > 1 and path.stem != "__init__"
    }
    assert rooms - mapped - {"html", "cli"} == set()


def test_every_trap_and_field_case_that_the_code_cites_is_explained():
    text = _page(tree.ROOT / "docs" / "traps.md")
    explained = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    for path in tree.sources():
        source = path.read_text(encoding="utf-8")
        cited = set(re.findall(r"\bF\d\d\b", " ".join(re.findall(r"field cases?[^.;)]*", source))))
        for numbers in re.findall(r"\btraps? (\d+(?:(?:, | and )\d+)*)", source):
            cited |= set(re.findall(r"\d+", numbers))
        assert cited <= explained, f"{path} cites {sorted(cited - explained)}, which docs/traps.md does not explain"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_exist(page):
    text = _page(page)
    targets = set(re.findall(r"^([a-z-]+):", _page(tree.ROOT / "Makefile"), re.MULTILINE))
    commands = re.findall(r"^ {4}(?:\$ )?((?:make|rorqual(?! VERB)|python) .*)$", text, re.MULTILINE) + re.findall(
        r"`((?:make|rorqual|python) [^`]+)`", text
    )
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word and "<" not in word][0] in targets, command
        elif words[0] == "rorqual" and words[1] not in ("--help", "VERB"):
            assert words[1] in VERBS or " ".join(words[1:3]) in VERBS, command
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (tree.ROOT / words[1]).is_file(), command


def test_readme_opens_with_what_it_is_the_two_commands_and_true_output(capsys):
    top = "\n".join(_page(tree.ROOT / "README.md").splitlines()[:40])
    assert "DeepSeek-V3" in top and "    make demo" in top and "    make test" in top
    shown = re.findall(r"^ {4}\$ rorqual --help\n((?: {4}.*\n|\n)+)", _page(tree.ROOT / "README.md"), re.MULTILINE)
    cli.main(["--help"])
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    for block in shown:
        assert [line[4:].rstrip() for line in block.splitlines() if line.strip()] == printed


def test_contributing_is_short_and_changelog_is_kept():
    assert len(_page(tree.ROOT / "CONTRIBUTING.md").splitlines()) < 60
    assert "## [Unreleased]" in _page(tree.ROOT / "CHANGELOG.md")


def test_nothing_names_one_machine_or_a_registry():
    """Paths and hosts of one workplace have no place in what everybody reads."""
    texts = [
        *PAGES,
        *(tree.ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run")),
        *tree.sources(),
        *tree.sources(tree.ROOT / "benchmarks"),
    ]
    for path in texts:
        found = re.findall(r"(?:^|[\s'\"`(])(/(?:root|work|home/\w+)/\S*)|(files\.pythonhosted|pypi\.org)", _page(path))
        assert not found, f"{path}: {found}"
