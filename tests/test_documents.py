"""What README.md and docs/ tell a reader to type runs, and what they point at is there."""

import re
import shlex
from pathlib import Path

import pytest

from l2ljax import cli
from l2ljax.cli import _commands

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARAMETERS = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in DOCUMENTS]


def _blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PARAMETERS if _blocks(p.values[0], "python")])
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(_blocks(path, "python")):
        exec(compile(block, f"{path.name}, example {number}", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", PARAMETERS)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PARAMETERS)
def test_named_scripts_and_tests_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:benchmarks|tests|l2ljax|notebooks)/[\w/]+\.\w+", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", PARAMETERS)
def test_the_command_line_takes_the_commands(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo", "train", "compare", "bench", "list_tasks", "list_weights", "build"):
        monkeypatch.setattr(_commands, name, lambda arguments: None)
    for line in "".join(_blocks(path, "sh")).splitlines():
        program, *words = shlex.split(line.removesuffix("&"), comments=True)
        if program == "l2ljax":
            assert cli.main(words) == 0
