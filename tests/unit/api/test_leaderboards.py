"""The tables of README and of the studies are what `report` makes of the shipped records, digit by digit (evidence 7,
trap 7)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmark
from benchmark.api.reporting import report
from benchmark.report import app
from tests.unit.made_leaderboard import write_leaderboard

ROOT = Path(benchmark.__file__).parent.parent
BLOCK = re.compile(r"<!-- (?:leaderboard|study): (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def faults(readme: str, folder: Path) -> Iterator[str]:
    """Where a README and a folder of results disagree: each of them with records has its block, and no other."""
    blocks = BLOCK.findall(readme)
    shipped = {path.name for path in folder.glob("*") if any((path / "records").rglob("*.json"))}
    names = [name for name, _ in blocks]
    yield from (f"{name} stands twice" for name in sorted(set(names)) if names.count(name) > 1)
    yield from (f"{name} has no records" for name in names if name not in shipped)
    yield from (f"{name} is not in the README" for name in sorted(shipped - set(names)))
    for name, text in blocks:
        if name in shipped and text.strip() != report(folder / name, "markdown", glance=True).strip():
            yield f"{name}: python -m benchmark.report results/{folder.name}/{name} --format markdown --glance"


@pytest.mark.parametrize(
    ("readme", "folder"), [("README.md", "leaderboards"), ("results/studies/README.md", "studies")]
)
def test_a_readme_says_what_the_shipped_records_say(readme: str, folder: str) -> None:
    assert list(faults((ROOT / readme).read_text(encoding="utf-8"), ROOT / "results" / folder)) == []


def test_a_readme_that_says_anything_else_is_found(tmp_path: Path) -> None:
    folder = write_leaderboard(tmp_path / "made")
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, [str(folder), "--format", "markdown", "--glance"])
    assert result.exit_code == 0
    readme = f"Text.\n\n<!-- leaderboard: made -->\n{result.stdout}<!-- end -->\n\nMore.\n"
    assert list(faults(readme, tmp_path)) == []
    digits = [found.start() for found in re.finditer(r"\d", readme)]
    for place in (digits[0], digits[-1]):
        other = str((int(readme[place]) + 1) % 10)
        found = list(faults(readme[:place] + other + readme[place + 1 :], tmp_path))
        assert found == [f"made: python -m benchmark.report results/{tmp_path.name}/made --format markdown --glance"]
    assert list(faults("Text.", tmp_path)) == ["made is not in the README"]
    assert list(faults(readme + readme, tmp_path)) == ["made stands twice"]
    assert list(faults(readme.replace("board: made", "board: gone"), tmp_path)) == [
        "gone has no records",
        "made is not in the README",
    ]
