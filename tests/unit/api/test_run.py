"""The command as a user meets it: exit codes, one line for a mistake, nothing trained twice."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark import __main__ as sharebench
from benchmark.api import running
from benchmark.cli import pick_device
from benchmark.plan.suite_file import SuiteChoices, read_suite, select
from benchmark.run import app
from benchmark.speed import light
from benchmark.speed.timing import SpeedProtocol, WarmUpRule
from datasets.errors import UsageError
from tests.unit.measuring import in_this_process

SUITE = """
name: tiny
plugins: [{toy_data}]
data: [{{dataset: toy, tasks: [left, right]}}]
backbones: [test_resnet]
methods: [hard_sharing, single_task]
seeds: [0]
budget: {{steps: 2, cycles: 2}}
recipe: {{batch_size: 8}}
"""


@pytest.fixture
def suite(tmp_path: Path, toy_data: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE.format(toy_data=toy_data), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.usefixtures("quick_workers")
def test_a_run_prints_a_table_and_the_next_one_trains_nothing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = SpeedProtocol(pairs=2, warm_up=WarmUpRule(steps=1, seconds=0.0, limit_s=0.0, shared=True))
    monkeypatch.setattr(light, "measure_light", functools.partial(light.measure_light, protocol=protocol))
    monkeypatch.setattr(light, "run_job", in_this_process)  # its process is started in tests/unit/speed
    out = tmp_path / "out"
    first = command(suite, "--out", out)
    assert first.exit_code == 0, first.output
    assert "[2/2]" in first.stdout
    for text in ("hard_sharing", "single_task", "accuracy", "Delta_m", "Nothing is ranked by Delta_m"):
        assert text in first.stdout
    files = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}
    assert len(files) == 2
    assert {path.name for path in out.glob("table.*")} == {"table.md", "table.csv", "table.tex"}
    assert "A/A" in (out / "table.md").read_text(encoding="utf-8")
    picture, page = (Path(line.split(": ")[1]) for line in first.stdout.splitlines()[-2:])
    assert (picture.parent.name, page) == ("figures", out / "report.html")
    assert picture.read_bytes().startswith(b"\x89PNG")
    drawn = [path.stat().st_mtime_ns for path in (picture, page)]
    second = command(suite, "--out", out)
    assert second.exit_code == 0
    assert second.stdout.splitlines()[-2:] == first.stdout.splitlines()[-2:]
    assert [path.stat().st_mtime_ns for path in (picture, page)] == drawn  # of a folder in which nothing is new
    assert "2 with a record, 0 to run" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")} == files


@pytest.mark.usefixtures("quick_workers")
def test_a_suite_that_calls_itself_a_leaderboard_is_told_first_what_it_lacks(suite: Path, tmp_path: Path) -> None:
    suite.write_text(suite.read_text(encoding="utf-8") + "leaderboard: true\n", encoding="utf-8")
    result = command(suite, "--no-speed", "--out", tmp_path / "out")
    text = " ".join(result.stdout.split())
    assert "! not a leaderboard: 1 of at least 5 seeds; equal tuning: no row was tuned; " in text
    assert "a check of convergence by the reference row (training losses and twice the steps)" in text
    assert text.index("! not a leaderboard") < text.index("! one seed")
    assert "constant prediction" in text


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_resume(suite: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-u", "-m", "benchmark.run", str(suite), "--out", str(tmp_path / "out"), "--jobs", "1"]
    line += ["--set", "budget.steps=100000"]
    # Whoever starts the tests in the background of a shell hands down an ignored interrupt.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout is not None
    assert "to run" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Resume with: python -m benchmark.run" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quik"], "Unknown suite 'quik'"),
        (["--methods", "hard_sharin"], "Unknown method 'hard_sharin'"),
        (["--datasets", "mnist"], "Unknown data set 'mnist'"),
        (["--tasks", "left,lft"], "'lft'. Nearest: 'left'"),
        (["--backbones", "resnet19"], "Unknown backbone 'resnet19'"),
        (["--seeds", "0,x"], "expected whole numbers"),
        (["--seeds", ""], "at least 1 item"),
        (["--set", "recipe.lr"], "expected section.key=value"),
        (["--set", "recipe.batch_size=0"], "greater than or equal to 1"),
        (["--device", "gpu"], "expected auto, cpu, cuda or cuda:0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    result = CliRunner().invoke(app, [str(suite), "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("quick_workers")
def test_damaged_and_foreign_records_are_run_again_and_kept(suite: Path, tmp_path: Path) -> None:
    from benchmark.plan.cells import plan
    from benchmark.records.store import Store

    planned = plan(select(str(suite), SuiteChoices(methods=["hard_sharing"])))[0]
    store = Store(tmp_path / "out")
    path = store.record_path(planned)
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "status": "done"', encoding="utf-8")
    result = CliRunner().invoke(
        app, [str(suite), "--methods", "hard_sharing", "--out", str(tmp_path / "out"), "--no-speed"]
    )
    assert result.exit_code == 0, result.output
    assert store.is_done(planned.key)
    assert [file.read_text(encoding="utf-8") for file in (tmp_path / "out" / "history").rglob("*.json")]


def test_cuda_without_cuda_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UsageError, match="sees 0 CUDA devices"):
        pick_device("cuda")


def test_choices_of_the_command_line_keep_the_suite_settings(suite: Path) -> None:
    chosen = select(str(suite), SuiteChoices(methods=["single_task"], seeds=[4, 5], settings=["budget.steps=9"]))
    assert [method.name for method in chosen.methods] == ["single_task"]
    assert chosen.seeds == (4, 5)
    assert chosen.budget.steps == 9
    assert chosen.data[0].tasks == ("left", "right")
    assert select(str(suite), SuiteChoices(tasks=["right"])).data[0].tasks == ("right",)
    assert chosen.recipe == read_suite(suite).recipe


def test_a_method_that_stands_in_several_rows_is_chosen_with_all_of_them() -> None:
    """`run standard --methods single_task,hard_sharing` without the row that others are tested against helps nobody."""
    chosen = select("standard", SuiteChoices(methods=["single_task", "hard_sharing", "task_switching"])).methods
    assert [method.name for method in chosen] == ["single_task", *["hard_sharing"] * 3, "task_switching"]
    assert [method.params.get("steps_factor") for method in chosen[1:4]] == [None, 2.0, 5.0]


def test_a_missing_baseline_is_said_at_the_start(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.plan.cells import plan
    from benchmark.plan.remarks import missing_reference

    assert not missing_reference(plan(select(str(suite))))
    assert missing_reference(plan(select(str(suite), SuiteChoices(methods=["hard_sharing"]))))


def test_the_console_script_has_the_same_commands() -> None:
    result = CliRunner().invoke(sharebench.app, ["--help"])
    assert result.exit_code == 0
    for name in ("run", "report", "check", "list", "throughput"):
        assert name in result.stdout
    assert CliRunner().invoke(sharebench.app, ["list", "hard_sharing"]).exit_code == 0


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_may_have_loader_processes_of_its_own(suite: Path, toy_data: Path, tmp_path: Path) -> None:
    """A daemon may not: suites with `workers` on files that are read one by one failed in their first batch."""
    from benchmark.plan.cells import plan
    from benchmark.train.cell import RunSettings
    from benchmark.workers.executors import LocalExecutor

    chosen = select(str(suite), SuiteChoices(methods=["hard_sharing"], settings=["recipe.workers=1"]))
    running.check_names(chosen)
    data = chosen.data[0].model_copy(update={"options": {"one_by_one": True}})
    executor = LocalExecutor(RunSettings(tmp_path / "out", plugins=(str(toy_data),)), jobs=1)
    events = executor.run(plan(chosen.model_copy(update={"data": (data,)})))
    assert [(event.status, event.message) for event in events if event.kind == "finished"] == [("done", "")]


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_dies_fails_its_cell_and_no_other(suite: Path, toy_data: Path, tmp_path: Path) -> None:
    from benchmark.plan.cells import plan
    from benchmark.train.cell import RunSettings
    from benchmark.workers.executors import LocalExecutor

    executor = LocalExecutor(RunSettings(tmp_path / "out", plugins=(str(toy_data),)), jobs=1)
    statuses = {}
    for event in executor.run(plan(select(str(suite)))):
        if event.kind == "started" and event.cell == 0:
            pid = executor._workers[0].process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        if event.kind == "finished":
            statuses[event.cell] = (event.status, event.message)
    assert statuses[0][0] == "failed"
    assert "signal 9" in statuses[0][1]
    assert statuses[1] == ("done", "")


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_whose_run_is_gone_ends_without_a_word_and_without_a_record(
    suite: Path, toy_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after a kill: nothing is printed, and no failure is recorded that was none."""
    import multiprocessing

    from benchmark.plan.cells import plan
    from benchmark.records.store import Store
    from benchmark.train.cell import RunSettings
    from benchmark.workers.executors import _work

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(theirs, RunSettings(tmp_path / "out", plugins=(str(toy_data),))))
    worker.start()
    theirs.close()
    ours.send((0, plan(select(str(suite), SuiteChoices(methods=["hard_sharing"])))[0]))
    ours.close()
    worker.join(120)
    assert worker.exitcode == 0
    assert not list((tmp_path / "out" / "records").rglob("*.json"))
    assert not Store(tmp_path / "out").load_all()
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core")
def test_workers_are_counted_from_what_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert running.n_workers(None, "cpu") == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert running.n_workers(5, "cpu") == 5
    assert running.n_workers(None, "cuda") == 1


def test_an_interrupt_waits_until_a_process_has_started() -> None:
    """Cut off while its first message is written, the new process would print a traceback."""
    from benchmark.workers.processes import interrupts_wait

    reached = []

    def start() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end of the block")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["the end of the block"]
