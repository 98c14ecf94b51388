"""`tune`: trials that never open report, a tuning that goes on where it was killed, and a run by its page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import benchmark
from benchmark.api.reporting import report
from benchmark.api.running import RunRequest, run
from benchmark.api.tuning import JOURNAL, PAGE, TuneRequest, tune
from benchmark.cli import EXIT_NOT_DONE, make_console
from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.suite_file import SuiteChoices, select
from benchmark.plan.tuning import suite_of_trials, tables_of
from benchmark.records.documents import ErrorEntry
from benchmark.records.record import Record
from benchmark.records.store import Store
from benchmark.show import plots
from benchmark.tables.columns import TUNING_COLUMN
from benchmark.tables.folder import tables_of as tables_of_folder
from benchmark.train import cell as training
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.roles import ClosedLoader, ClosedRoleError
from benchmark.train.trainer import CellTrainer
from benchmark.tune import app
from benchmark.workers import executors, show_plan
from benchmark.workers.executors import Event
from methods.contracts import Role
from tests.conftest import toy_registered
from tests.unit.kills import Killed

SUITE = """
name: tiny
data: [{dataset: toy, tasks: [left, right]}]
backbones: [test_resnet]
methods: [single_task, cross_stitch]
seeds: [0]
budget: {steps: 4, cycles: 2}
recipe: {batch_size: 16}
"""


class Here:
    """An executor that trains in this process. killed_in: method and number of the trial in which it is killed."""

    killed_in: tuple[str, int] | None = None
    trained: list[str]

    def __init__(self, settings: RunSettings, jobs: int) -> None:
        self.settings = settings

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Event]:
        for number, cell in enumerate(cells):

            def progress(told: object, place: object = (cell.settings.method.name, number)) -> None:
                if place == Here.killed_in:
                    raise Killed

            record = run_cell(cell, self.settings, progress)
            Here.trained.append(cell.key)
            yield Event("finished", number, 0, status=record.status, seconds=0.0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(executors, "LocalExecutor", Here)
    monkeypatch.setattr(Here, "killed_in", None)
    Here.trained = []
    with toy_registered():
        yield


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def tuned(suite: Path, out: Path, **changes: Any) -> int:
    return tune(TuneRequest(str(suite), **{"trials": 3, "out": out, "device": "cpu", **changes}), make_console())


@pytest.mark.usefixtures("here")
def test_a_tuning_that_is_killed_in_its_third_trial_ends_with_the_same_page(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(suite, tmp_path / "straight") == 0
    straight = Here.trained
    assert len(straight) == len(set(straight)) == 3 + 3  # learning rates of single_task, and trials of cross_stitch
    Here.trained = []
    monkeypatch.setattr(Here, "killed_in", ("cross_stitch", 2))
    with pytest.raises(Killed):
        tuned(suite, tmp_path / "killed")
    assert Here.trained == straight[:5]
    assert not (tmp_path / "killed" / PAGE).exists()
    monkeypatch.setattr(Here, "killed_in", None)
    assert tuned(suite, tmp_path / "killed") == 0
    assert Here.trained == straight
    assert (tmp_path / "killed" / PAGE).read_bytes() == (tmp_path / "straight" / PAGE).read_bytes()
    networks = [len(list((tmp_path / name / "single_task").glob("*/*"))) for name in ("straight", "killed")]
    assert networks == [6, 6]  # cross_stitch takes over those of the tuned row
    assert tuned(suite, tmp_path / "killed") == 0
    assert Here.trained == straight


@pytest.mark.usefixtures("here")
def test_a_plan_says_what_a_tuning_will_take_and_trains_nothing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show_plan, "LocalExecutor", Here)
    out = tmp_path / "out"
    words = [str(suite), "--plan", "--jobs", "2", "--out", str(out), "--device", "cpu"]

    def planned(*more: str) -> str:
        result = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return " ".join(result.stdout.split())

    first = planned()
    assert not out.exists()
    assert "single_task · toy · test_resnet 3 3 4 " in first
    assert "cross_stitch · toy · test_resnet 5 5 4 " in first
    assert "8 trials, 8 to run on 2 workers: 32 steps of final trainings, searches apart; about " in first
    assert "B of memory." in first
    assert len(Here.trained) == 2  # probes, in a folder of their own
    assert "; 2 rows without an estimate." in planned("--no-probe")
    monkeypatch.setattr(Here, "killed_in", ("cross_stitch", 2))
    with pytest.raises(Killed):
        tuned(suite, out)
    second = planned("--no-probe")  # what has ended says what the rest takes
    assert "single_task · toy · test_resnet 3 0 4 " in second
    assert "cross_stitch · toy · test_resnet 5 3 4 " in second
    assert "8 trials, 3 to run on 2 workers: 12 steps" in second


@pytest.mark.usefixtures("here")
def test_the_journal_of_optuna_lies_beside_the_records(suite: Path, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out = tmp_path / "out"
    for _ in range(2):
        assert tuned(suite, out, trials=2) == 0
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    page = yaml.safe_load((out / PAGE).read_text(encoding="utf-8"))["tables"][0]["rows"][0]
    (name,) = [found for found in optuna.get_all_study_names(storage) if found.startswith("cross_stitch")]
    study = optuna.load_study(study_name=name, storage=storage)
    assert [trial.user_attrs["cell"] for trial in study.trials] == [tried["cell"] for tried in page["tried"]]
    assert [trial.params for trial in study.trials] == [tried["setting"] for tried in page["tried"]]
    assert study.best_trial.params == page["chosen"]


@pytest.mark.usefixtures("here")
def test_a_trial_never_opens_report(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = tables_of(plan(suite_of_trials(select(str(suite)))), 1)
    (trial,) = table.reference_trials()
    record = run_cell(trial, RunSettings(tmp_path / "a"))
    assert (record.status, record.metrics, record.n_evaluated, record.artifacts) == ("done", {}, {}, {})
    assert record.select_metrics["left"]["accuracy"]["n_units"] == 20
    closed = ClosedLoader()
    for ask in (lambda: list(closed.ordered(["left"])), lambda: closed.n_samples("image"), lambda: closed.inputs):
        with pytest.raises(ClosedRoleError, match="judged on select; the report role is closed to it"):
            ask()
    seen = []
    original = CellTrainer.judge

    def peeks(trainer: CellTrainer, graph: Any) -> Any:
        seen.append(type(trainer.context.loaders[Role.REPORT]))
        trainer.report(graph)
        return original(trainer, graph)

    monkeypatch.setattr(CellTrainer, "judge", peeks)
    record = run_cell(trial, RunSettings(tmp_path / "b"))
    assert (record.status, record.error["kind"], seen) == ("failed", "ClosedRoleError", [ClosedLoader])


@pytest.mark.usefixtures("here")
def test_a_run_by_the_page_is_a_table_of_its_own(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(suite, tmp_path / "tuning", trials=2) == 0
    page = yaml.safe_load((tmp_path / "tuning" / PAGE).read_text(encoding="utf-8"))["tables"][0]
    out = tmp_path / "runs"
    for choices in (SuiteChoices(), SuiteChoices(tuned=tmp_path / "tuning" / PAGE)):
        assert run(RunRequest(str(suite), choices, out=out, device="cpu", speed=False), make_console()) == 0
        assert len(list((out / "figures").glob("cross_stitch-*.svg"))) > 0
        monkeypatch.setattr(plots, "draw_records", lambda *_: ())  # the other runs would draw the same again
    records = Store(out).load_all()
    assert len({record.table_key for record in records}) == 2
    equal, taken = (
        {record.method: record for record in records if ("tuned" in record.cell) is is_tuned}
        for is_tuned in (False, True)
    )
    assert [record.audit["tuning_trials"] for record in taken.values()] == [2, 2]
    row = page["rows"][0]
    assert taken["cross_stitch"].cost["tuning"] == {"optimizer_steps": row["steps"]}
    assert taken["cross_stitch"].audit["tuning"]["chosen"] == row["chosen"]
    assert "tuning" not in equal["cross_stitch"].audit
    networks = {record.method: set(record.reused_from) for record in taken.values()}
    assert networks["cross_stitch"] == networks["single_task"]
    same = {factor == 1.0 for factor in page["single_task"]["chosen"].values()} == {True}
    assert (networks["single_task"] == set(equal["single_task"].reused_from)) is same
    tables = sorted(tables_of_folder(out)[0], key=lambda table: "tuning" in table.head)
    assert [[row.label for row in table.rows] for table in tables] == [["single_task", "cross_stitch"]] * 2
    assert [TUNING_COLUMN in table.columns for table in tables] == [False, True]
    text = " ".join(report(out, "markdown").split())
    assert "equal tuning at seed 1000" in text
    assert "tuning cost" in text
    assert "tuned to alpha" in text
    assert "trials of a tuning" in report(tmp_path / "tuning", "markdown")
    capsys.readouterr()
    own = SuiteChoices(methods=["hard_sharing"], tuned=tmp_path / "tuning" / PAGE)  # a row that the page lacks
    assert run(RunRequest(str(suite), own, out=out, device="cpu", speed=False), make_console()) == 0
    told = capsys.readouterr().out
    assert "hard_sharing · toy · test_resnet is not in " in told
    assert "no single-task baseline" not in told  # it stands among the records
    (mine,) = [record for record in Store(out).load_all() if record.method == "hard_sharing"]
    assert mine.table_key == taken["single_task"].table_key
    text = " ".join(report(out, "markdown").split())
    assert "hard\\_sharing: not tuned, trained as the suite has it" in text
    assert "audit ~ tuning trials: 2; hard\\_sharing: not tuned" in text
    assert run(RunRequest(str(suite), choices, out=out, device="cpu", smoke=True), make_console()) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("here")
def test_divergence_is_an_answer_and_a_failure_is_not(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(status: str) -> Any:
        def run_one(planned: PlannedCell, settings: RunSettings, progress: object = None) -> Record:
            if planned.settings.lr_factor == 3.0:
                error = ErrorEntry(kind="X", message="x", stage=None, step=None, task=None)
                return Store(settings.out).write(Record(cell=planned.document, status=status, error=error))
            return training.run_cell(planned, settings)

        return run_one

    text = SUITE.replace("cross_stitch", "hard_sharing")
    suite.write_text(text, encoding="utf-8")
    monkeypatch.setattr("tests.unit.api.test_tune.run_cell", ends("failed"))
    assert tuned(suite, tmp_path / "out") == EXIT_NOT_DONE
    assert not (tmp_path / "out" / PAGE).exists()
    monkeypatch.setattr("tests.unit.api.test_tune.run_cell", ends("diverged"))
    assert tuned(suite, tmp_path / "out") == 0
    row = yaml.safe_load((tmp_path / "out" / PAGE).read_text(encoding="utf-8"))["tables"][0]["rows"][0]
    assert [(tried["status"], tried["scores"]["delta_m"] is None) for tried in row["tried"]] == [
        ("done", False), ("done", False), ("diverged", True)
    ]  # fmt: skip
    Here.trained = []
    assert tuned(suite, tmp_path / "out") == 0
    assert Here.trained == []


def test_an_interrupt_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.api.tuning.tune", interrupted)
    monkeypatch.setattr(sys, "argv", ["/somewhere/tune.py", "quick"])
    result = CliRunner().invoke(app, ["quick"], prog_name="python -m benchmark.tune")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("finished trials are kept. Resume with: python -m benchmark.tune quick")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quick", "--set", "recipe.lr"], "expected section.key=value"),
        (["qick"], "Nearest: 'quick'"),
        (["quick", "--methods", "hard_sharing"], "expected one row of these on multi_mnist"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_optuna_is_asked_for_by_this_command_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, benchmark.tune, benchmark.__main__; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    root = Path(benchmark.__file__).parent
    users = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if "import optuna" in path.read_text()]
    assert sorted(users) == ["api/tuning.py", "plan/tuning.py"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["quick"])
    assert (result.exit_code, result.stderr) == (
        2, "error: Tuning needs Optuna, which is not installed: pip install 'sharebench[tune]'.\n"
    )  # fmt: skip
