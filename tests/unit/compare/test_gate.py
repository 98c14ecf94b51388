"""The regression gate: a change for the worse fails with the right exit code, and nothing else does (G1)."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import benchmark.train.cell
from benchmark.api.checking import accept, check
from benchmark.check import app
from benchmark.compare.baseline import Baseline, accepted, baseline_bytes, golden_key, golden_platform, read_baseline
from benchmark.compare.gate import Finding, Verdict, compare, exit_code, speed_bound, superseded
from benchmark.compare.gate_text import lines
from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.suite import Suite
from benchmark.plan.suite_file import select
from benchmark.records.measurements import MeasurementFile, NetworkEntry, SpeedSettings, write_measurement
from benchmark.records.record import Record, parse_record, record_bytes
from benchmark.records.store import Store
from benchmark.train.cell import RunSettings, run_cell
from benchmark.train.loaders import RoleLoader
from datasets.kinds.class_kind import ClassEvaluator
from tests.conftest import toy_registered
from tests.unit.made_records import SHARED, make_failure, make_record

DEVICE = "some processor"


def stored(record: Record, **changes: Any) -> Record:
    """A synthetic record as reading gives it, from one thread of a CPU, with a loss curve and weights."""
    environment = {
        "device": "cpu",
        "cpu": "some processor",
        "platform": "Linux x86_64",
        "cpu_capability": "AVX2",
        "threads": {"intra_op": 1, "inter_op": 2},
        "env": {"MKL_CBWR": "AVX2"},
        "determinism": {"algorithms": True},
    }
    weights = {"kind": "weights", "file": "w.safetensors", "sha256": "a" * 64}
    fields = {"environment": environment, "curves": {"loss/depth": [0.5, 0.1]}, "artifacts": {"weights": weights}}
    return parse_record(record_bytes(dataclasses.replace(record, **{**fields, **changes})))


def two() -> list[Record]:
    return [stored(make_record("single_task", reference=True)), stored(make_record("hard_sharing"))]


def measured(r: float, *, aa: float = 1.0, number: int = 0, **changes: Any) -> MeasurementFile:
    """A speed file of the one graph of synthetic records."""
    entry = {
        "graph": "g" * 64, "mode": "joint", "status": "done", "batch": 8, "method": "hard_sharing", "params": {},
        "seed": 0, "is_reference": False, "r": r, "raw": {"network_ns": (1001, 2002)},
    }  # fmt: skip
    fields = {
        "schema": 1, "status": "done", "message": None, "started": f"2030-01-01T00:00:{number:02}Z", "seconds": 1.0,
        "table": "t", "settings": SpeedSettings(batch=8), "form": "pairs", "protocol": {"pairs": 60}, "reference": {},
        "aa": aa, "flags": (), "cpu_share": 1.0, "residency": None, "device": DEVICE, "versions": {}, "environment": {},
        "states": {}, "networks": (NetworkEntry(**{**entry, **changes.pop("entry", {})}),),
    }  # fmt: skip
    return MeasurementFile(**{**fields, **changes})


def base(
    records: Sequence[Record] | None = None, r: Sequence[float] = (0.90, 0.91, 0.92), reason: str = "first"
) -> Baseline:
    speeds = [measured(value, number=number) for number, value in enumerate(r)]
    return accepted(two() if records is None else records, speeds, reason, None)


def judged(
    records: Sequence[Record], baseline: Baseline | None = None, speeds: Sequence[MeasurementFile] = ()
) -> tuple[int, list[Finding]]:
    findings = compare(records, baseline or base(), speeds)
    return int(exit_code(findings)), findings


def bad(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict not in (Verdict.SAME, Verdict.NOT_JUDGED)]


# G1


def test_g1_against_itself_nothing_is_found() -> None:
    code, findings = judged(two(), speeds=[measured(0.91, number=9)])
    assert code == 0
    assert not bad(findings)
    assert {finding.kind for finding in findings if finding.verdict is Verdict.SAME} == {"exact", "golden", "speed"}


def test_g1_one_parameter_more_is_a_regression() -> None:
    single, shared = two()
    more = stored(make_record("hard_sharing", size={**shared.size, "total": 312_346}))
    code, findings = judged([single, more])
    assert code == 1
    (finding,) = [finding for finding in bad(findings) if finding.kind == "exact"]
    assert (finding.name, finding.old, finding.new) == ("size.total", "312345", "312346")


def test_g1_four_fifths_of_the_speed_is_a_regression() -> None:
    code, findings = judged(two(), speeds=[measured(0.91 * 0.8, number=9)])
    assert code == 1
    (finding,) = bad(findings)
    assert "joint" in finding.name
    assert "0.910 [0.900, 0.920] of 3" in finding.old
    assert "old r: 0.9000, 0.9100, 0.9200" in finding.details  # the raw samples of what fails
    assert "network_ns: 1001, 2002" in finding.details


@pytest.mark.parametrize("r", [0.91, 0.5])
def test_g1_a_noisy_machine_is_inconclusive_whatever_it_measured(r: float) -> None:
    findings = compare(two(), base(), [measured(r, aa=1.2, number=9)])
    assert exit_code(findings) == 3
    assert exit_code(findings, strict=True) == 1


def test_g1_a_cell_missing() -> None:
    code, findings = judged(two()[:1])
    assert code == 4
    assert "missing" in bad(findings)[0].new


def test_g1_another_seed_is_unpaired_and_says_so() -> None:
    code, findings = judged([two()[0], stored(make_record("hard_sharing", seed=1))])
    assert code == 4
    old, new = bad(findings)
    assert "the same cell is there with seed 1" in old.new
    assert "has this cell with seed 0" in new.old


# Exact


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("compute.macs_joint", {"compute": {"macs_joint": 1, "macs_sum": 3_628_146_688, "uncounted_ops": {}}}),
        ("compute.uncounted_ops", {"compute": {"macs_joint": 1_814_073_344, "macs_sum": 3_628_146_688}}),
        ("graph.hash", {"graph": {"hash": "h" * 64, "file": "graph.json"}}),
        ("n_evaluated.depth", {"n_evaluated": {"semseg": 100, "depth": 96}}),
        ("roles.fit", {"roles": {"fit": "x", "arch": "b", "select": "c", "report": "d"}}),
        ("data_hash", {"versions": {"data_hash": "e" * 32, "torch": "2.6.0"}}),
        ("cost.final.optimizer_steps", {"cost": {"weight_steps": 100, "final": {"optimizer_steps": 99}}}),
    ],
)
def test_every_exact_value_is_compared_on_any_machine(name: str, change: dict[str, Any]) -> None:
    single, shared = two()
    environment = {**shared.environment, "cpu_capability": "AVX512", "threads": {"intra_op": 4}}
    code, findings = judged([single, dataclasses.replace(shared, environment=environment, **change)])
    assert code == 1
    assert name in {finding.name for finding in bad(findings)}
    assert {finding.kind for finding in bad(findings)} == {"exact"}


def test_times_dates_and_attempts_are_not_compared() -> None:
    changes = {"started": "2031-01-01T00:00:00Z", "attempts": 7}
    record = two()[1]
    cost = {**record.cost, "peak_bytes": 5, "final": {**record.cost["final"], "seconds": 99.0}}
    assert judged([two()[0], dataclasses.replace(record, cost=cost, **changes)])[0] == 0


def test_an_integer_that_became_a_float_is_a_difference() -> None:
    single, shared = two()
    assert judged([single, dataclasses.replace(shared, size={**shared.size, "total": 312_345.0})])[0] == 1


# Golden


def changed_metric(value: float, **changes: Any) -> Record:
    values = {**SHARED, "depth": {**SHARED["depth"], "rel_err": value}}
    return stored(make_record("hard_sharing", values=values), **changes)


def test_the_last_bit_of_a_metric_counts_on_the_same_platform() -> None:
    code, findings = judged([two()[0], changed_metric(0.23000000000000004)])
    assert code == 1
    finding = next(finding for finding in bad(findings) if finding.name == "metrics.depth.rel_err")
    assert (finding.old, finding.new) == ("0.23", "0.23000000000000004")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"curves": {"loss/depth": [0.5, 0.125]}}, "1 values differ, first number 2: 0.1 -> 0.125"),
        ({"curves": {"loss/depth": [0.5]}}, "2 values before, 1 now"),
        ({"curves": {"loss/depth": [0.5, None]}}, "0.1 -> None"),
        ({"curves": {}}, "absent"),
        ({"artifacts": {"weights": {"kind": "weights", "file": "w", "sha256": "b" * 64}}}, "weights.weights"),
    ],
)
def test_curves_and_weights_are_golden_too(change: dict[str, Any], said: str) -> None:
    code, findings = judged([two()[0], stored(make_record("hard_sharing"), **change)])
    assert code == 1
    assert said in "\n".join(lines(findings))


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_capability": "AVX512"},
        {"platform": "Darwin arm64"},
        {"env": {"MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}},
        {"env": {}},
        {"threads": {"intra_op": 2}},
        {"determinism": {"algorithms": False}},
    ],
)
def test_on_another_platform_differences_are_told_and_not_judged(change: dict[str, Any]) -> None:
    environment = {**two()[1].environment, **change}
    code, findings = judged([two()[0], changed_metric(0.253, environment=environment)])
    assert code == 0
    finding = next(found for found in findings if found.kind == "golden" and found.verdict is Verdict.NOT_JUDGED)
    assert "largest relative difference of metrics: 0.1 (metrics.depth.rel_err)" in finding.details
    assert any("0.23 -> 0.253" in line for line in lines(findings))  # accuracy, n = 1: printed


def test_another_torch_is_another_platform() -> None:
    versions = {**two()[1].versions, "torch": "2.7.0"}
    assert judged([two()[0], changed_metric(0.3, versions=versions)])[0] == 0


# Accuracy


def seeds(losses: Sequence[float], platform: str = "Darwin arm64") -> list[Record]:
    """hard_sharing with miou 44 less a loss, a seed each, from another platform than the baseline's."""
    made = []
    for seed, loss in enumerate(losses):
        values = {"semseg": {"miou": 44.0 + seed - loss}}
        environment = {**two()[1].environment, "platform": platform}
        made.append(stored(make_record("hard_sharing", seed=seed, values=values), environment=environment))
    return made


@pytest.mark.parametrize(
    ("losses", "code"),
    [
        ((9.0, 9.0), 0),  # two seeds: printed, not judged
        ((0.3, 0.3, 0.3), 0),  # below the floor: 1 % of 45
        ((0.5, 0.5, 0.5), 1),
        ((-5.0, -5.0, -5.0), 0),  # better
        ((3.0, 4.0, 5.0), 1),  # mean 4 > 3.26, what three seeds with s_d = 1 can detect
        ((2.0, 3.0, 4.0), 0),  # mean 3 < 3.26
    ],
)
def test_a_mean_may_fall_by_the_floor_or_by_what_cannot_be_detected(losses: Sequence[float], code: int) -> None:
    baseline = base(seeds([0.0] * len(losses), "Linux x86_64"), ())
    found, findings = judged(seeds(losses), baseline)
    assert found == code
    accuracy = [finding for finding in findings if finding.kind == "accuracy"]
    assert accuracy[0].verdict is (
        Verdict.REGRESSION if code else Verdict.SAME if len(losses) > 2 else Verdict.NOT_JUDGED
    )


def test_lower_is_better_where_the_metric_says_so() -> None:
    def errors(value: float, platform: str) -> list[Record]:
        environment = {**two()[1].environment, "platform": platform}
        values = {"depth": {"abs_err": value}}
        return [
            stored(make_record("hard_sharing", seed=seed, values=values), environment=environment) for seed in range(3)
        ]

    baseline = base(errors(0.5, "Linux x86_64"), ())
    assert judged(errors(0.4, "Darwin arm64"), baseline)[0] == 0
    assert judged(errors(0.6, "Darwin arm64"), baseline)[0] == 1


# Speed


def test_the_speed_rule_is_five_percent_or_twice_the_noise() -> None:
    assert speed_bound(1.0) == speed_bound(0.98) == 0.05
    assert speed_bound(1.03) == pytest.approx(0.06)
    for r, aa, code in ((0.87, 1.0, 0), (0.86, 1.0, 1), (0.86, 1.029, 0), (0.91 / 1.15, 1.0, 1), (2.0, 1.0, 0)):
        assert judged(two(), speeds=[measured(r, aa=aa, number=9)])[0] == code, (r, aa)


def test_two_measurements_or_another_device_say_nothing() -> None:
    few = base(r=(0.9, 0.9))
    assert judged(two(), few, [measured(0.1, number=9)])[0] == 0
    code, findings = judged(two(), speeds=[measured(0.1, number=9, device="another")])
    assert code == 0
    assert any("another at cpu-b8-fp32-contiguous-t1-eager has 0" in line for line in lines(findings))
    assert judged(two(), speeds=[measured(0.1, number=9, settings=SpeedSettings(batch=1))])[0] == 0
    held = {"env": {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}}
    assert judged(two(), speeds=[measured(0.1, number=9, environment=held)])[0] == 0


def test_a_run_without_speed_is_said_and_passes() -> None:
    code, findings = judged(two())
    assert code == 0
    assert any("speed no measurement" in line for line in lines(findings))


def test_fewer_than_sixty_pairs_are_no_measurement() -> None:
    short = measured(0.1, number=9, protocol={"pairs": 59})
    assert judged(two(), speeds=[short])[0] == 0
    assert len(accepted(two(), [short], "x", base()).speed) == 3
    assert len(accepted(two(), [measured(0.9, aa=1.2, number=9)], "x", base()).speed) == 3


def test_a_network_that_can_no_longer_be_measured_is_missing() -> None:
    failed = measured(0.9, number=9, entry={"status": "oom", "message": "no room", "r": None})
    assert judged(two(), speeds=[failed])[0] == 4
    no_reference = measured(0.9, number=9, aa=None, status="failed", entry={"status": "failed", "r": None})
    assert judged(two(), speeds=[no_reference])[0] == 4


def test_a_mode_that_is_no_longer_measured_is_said() -> None:
    code, findings = judged(two(), speeds=[measured(0.9, number=9, entry={"mode": "task:depth"})])
    assert code == 0
    assert any("r joint" in line and "not in this run" in line for line in lines(findings))


def test_the_latest_measurement_counts() -> None:
    assert judged(two(), speeds=[measured(0.5, number=8), measured(0.91, number=9)])[0] == 0
    assert judged(two(), speeds=[measured(0.5, number=9), measured(0.91, number=8)])[0] == 1


# Cells and precedence


def test_failed_and_invalid_records_are_missing_with_their_reason() -> None:
    single, shared = two()
    failed = dataclasses.replace(make_failure("hard_sharing", 0, message="no memory"), cell=shared.cell)
    code, findings = judged([single, failed])
    assert code == 4
    assert "oom: Error: no memory" in bad(findings)[0].new
    torn = Record(
        cell={},
        status="invalid",
        error={"kind": "invalid", "message": "torn", "stage": None, "step": None, "task": None},
    )
    code, findings = judged([*two(), torn])
    assert code == 4
    assert bad(findings)[0].new == "torn"
    assert judged([*two(), stored(make_record("hard_sharing", params={"a": 1}))])[0] == 4
    assert int(exit_code(compare(two(), base(), (), ["speed/x.json: torn"]))) == 4


def test_a_regression_outranks_what_is_missing_and_that_outranks_noise() -> None:
    shared = two()[1]
    larger = stored(make_record("hard_sharing", size={**shared.size, "total": 1}))
    noisy = [measured(0.9, aa=1.2, number=9)]
    assert judged([larger], speeds=noisy)[0] == 1
    assert judged([shared], speeds=noisy)[0] == 4
    assert judged([], speeds=noisy)[0] == 4
    assert judged(two(), speeds=noisy)[0] == 3


# Acceptance


def elsewhere(record: Record) -> Record:
    return dataclasses.replace(record, environment={**record.environment, "cpu_capability": "AVX512"})


def test_platforms_stand_side_by_side_until_the_exact_part_changes() -> None:
    first = base()
    both = accepted([elsewhere(record) for record in two()], (), "second machine", first)
    assert [len(cell.golden) for cell in both.cells.values()] == [2, 2]
    assert len(both.speed) == 3
    platform = golden_platform(two()[0])
    assert platform is not None
    assert golden_key(platform) in both.cells[two()[0].key].golden
    assert judged(two(), both)[0] == judged([elsewhere(record) for record in two()], both)[0] == 0
    shared = two()[1]
    more = stored(make_record("hard_sharing", size={**shared.size, "total": 1}))
    after = accepted([two()[0], more], (), "one more", both)
    assert [len(after.cells[key].golden) for key in (two()[0].key, shared.key)] == [2, 1]
    assert accepted(two()[:1], (), "fewer", both).cells.keys() == {two()[0].key}


def test_an_accepted_speed_ends_the_old_measurements() -> None:
    slower = [measured(0.5, number=number) for number in (10, 11, 12)]
    findings = compare(two(), base(), slower)
    assert exit_code(findings) == 1
    after = accepted(two(), slower, "twice the work", base(), superseded(findings))
    assert [next(iter(entry.r.values()))["joint"] for entry in after.speed] == [0.5, 0.5, 0.5]
    assert judged(two(), after, slower)[0] == 0
    again = accepted(two(), slower, "again", after, ())
    assert len(again.speed) == 3  # a measurement counts once
    # A folder that was measured before and after the change brings its old measurement along: it stays ended.
    old, new = measured(0.90, number=0), measured(0.5, number=10)
    after = accepted(two(), [old, new], "x", base(), superseded(compare(two(), base(), [old, new])))
    assert [next(iter(entry.r.values()))["joint"] for entry in after.speed] == [0.5]


def test_bits_of_two_threads_are_no_baseline() -> None:
    environment = {**two()[0].environment, "threads": {"intra_op": 2}}
    record = dataclasses.replace(two()[0], environment=environment)
    assert next(iter(base([record]).cells.values())).golden == {}


# The command


def folder(path: Path, records: Sequence[Record], speeds: Sequence[MeasurementFile] = ()) -> Path:
    store = Store(path)
    for record in records:
        store.write(record)
    for measurement in speeds:
        write_measurement(path, measurement)
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return folder(tmp_path / "run", two(), [measured(r, number=n) for n, r in enumerate((0.90, 0.91, 0.92))])


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.output


def test_accept_writes_what_the_check_then_finds_equal(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "baselines" / "gate.json"
    assert call(run_folder, "--against", file)[0] == 2
    code, text = call(run_folder, "--against", file, "--accept", "first")
    assert code == 0, text
    assert read_baseline(file).reason == "first"
    data = file.read_bytes()
    assert baseline_bytes(read_baseline(file)) == data
    code, text = call(run_folder, "--against", file)
    assert code == 0, text
    assert "same: 0 regression" in text
    assert call(run_folder, "--against", file, "--accept", "again")[0] == 0
    assert len(read_baseline(file).speed) == 3
    slow = folder(tmp_path / "slow", two(), [measured(0.7, number=9)])
    code, text = call(slow, "--against", file)
    assert code == 1
    assert "regression: speed r joint" in text
    noisy = folder(tmp_path / "noisy", two(), [measured(0.7, number=9, aa=1.2)])
    assert call(noisy, "--against", file)[0] == 3
    assert call(noisy, "--against", file, "--strict")[0] == 1


def test_nothing_is_accepted_from_a_run_that_is_not_whole(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    folder(run_folder, [make_failure("hard_sharing", 3)])
    code, text = call(run_folder, "--against", file, "--accept", "x")
    assert code == 4
    assert "out of memory" in text
    assert not file.exists()
    assert call(run_folder, "--against", file, "--accept", " ")[0] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call(empty, "--against", file, "--accept", "x")[0] == 4
    assert not file.exists()


def test_an_empty_reason_is_refused(run_folder: Path, tmp_path: Path) -> None:
    assert call(run_folder, "--against", tmp_path / "gate.json", "--accept", " ")[0] == 2


def damage(text: str) -> dict[str, str]:
    document = json.loads(text)
    key = next(iter(document["cells"]))
    moved, text_value, odd = copy.deepcopy(document), copy.deepcopy(document), copy.deepcopy(document)
    moved["cells"]["0" * 32] = moved["cells"].pop(key)
    golden = next(iter(text_value["cells"][key]["golden"].values()))["values"]
    golden[next(name for name in golden if name.startswith("metrics."))] = "much"
    odd["cells"][key]["extra"] = 1
    return {
        "cut off": text[:-40],
        "not text": "\udcff",
        "foreign": '{"schema": 1}',
        "a list": "[]",
        "newer": text.replace("sharebench-gate-1", "sharebench-gate-2"),
        "NaN": text.replace('"accuracy_floor":0.01', '"accuracy_floor":NaN'),
        "wrong type": text.replace('"accuracy_floor":0.01', '"accuracy_floor":"0"'),
        "another key": json.dumps(moved),
        "no float": json.dumps(text_value),
        "unknown field": json.dumps(odd),
    }


@pytest.mark.parametrize("accepting", [False, True])
def test_a_bad_baseline_is_one_line_and_stays_as_it_is(run_folder: Path, tmp_path: Path, accepting: bool) -> None:
    file = tmp_path / "gate.json"
    for name, text in damage(baseline_bytes(base()).decode()).items():
        data = text.encode("utf-8", "surrogateescape")
        file.write_bytes(data)
        code, output = call(run_folder, "--against", file, *(["--accept", "x"] if accepting else []))
        assert code == 2, name
        assert len(output.strip().splitlines()) == 1, (name, output)
        assert file.read_bytes() == data, name


def test_a_folder_that_is_none_is_a_usage_error_and_an_empty_one_misses_its_cells(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_bytes(baseline_bytes(base()))
    assert call(tmp_path / "none", "--against", file)[0] == 2
    assert call(file, "--against", file)[0] == 2
    assert call(tmp_path, "--against", file)[0] == 4
    assert call(tmp_path)[0] == 2  # without --against


def test_torn_files_in_the_run_are_missing(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    accept(run_folder, file, "first")
    speed = next((run_folder / "speed").rglob("*.json"))
    whole = speed.read_bytes()
    speed.write_bytes(whole[:50])
    assert check(run_folder, file)[0] == 4
    speed.write_bytes(whole)
    record = next((run_folder / "records").rglob("*.json"))
    record.write_bytes(record.read_bytes().replace(b'"total":312345', b'"total":312344'))
    assert check(run_folder, file)[0] == 4


def test_the_check_starts_without_torch(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    accept(run_folder, file, "first")
    code = (
        "import sys\nfrom pathlib import Path\nfrom benchmark.api.checking import check\n"
        f"assert check(Path({str(run_folder)!r}), Path({str(file)!r}))[0] == 0\n"
        "assert not {'torch', 'timm', 'numpy', 'pandas'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# Planted faults, in real runs


@pytest.fixture(scope="module")
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def planned(seed: int = 0) -> PlannedCell:
    document: dict[str, Any] = {
        "name": "tiny",
        "data": ["toy"],
        "backbones": ["test_resnet"],
        "methods": ["hard_sharing"],
        "seeds": [seed],
        "budget": {"steps": 2, "cycles": 2},
        "recipe": {"batch_size": 16},
    }
    return plan(Suite.model_validate(document))[0]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, _deterministic: None) -> Iterator[Path]:
    """A baseline of one real cell."""
    with toy_registered():
        yield baseline_of_a_run(tmp_path_factory)


def baseline_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gate")
    assert run_cell(planned(), RunSettings(root / "run")).status == "done"
    code, text = accept(root / "run", root / "gate.json", "first")
    assert code == 0, text
    assert len(next(iter(read_baseline(root / "gate.json").cells.values())).golden) == 1
    return root / "gate.json"


def test_ten_checks_of_unchanged_runs_raise_no_alarm(real: Path, tmp_path: Path) -> None:
    run_cell(planned(), RunSettings(tmp_path))
    for repeat in range(10):
        code, text = check(real.parent / "run" if repeat % 2 else tmp_path, real)
        assert code == 0, text
        assert "golden 7 values" in text


def a_lost_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    create = benchmark.train.cell.create_backbone

    def without_a_convolution(*arguments: Any, **options: Any) -> Any:
        backbone = create(*arguments, **options)
        backbone.blocks[0].module.conv2 = nn.Identity()
        return backbone

    monkeypatch.setattr(benchmark.train.cell, "create_backbone", without_a_convolution)


def a_changed_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    update = ClassEvaluator._update

    def classes_off_by_one(self: ClassEvaluator, prediction: Any, label: Any) -> None:
        update(self, prediction.roll(1, dims=1), label)

    monkeypatch.setattr(ClassEvaluator, "_update", classes_off_by_one)


def a_dropped_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RoleLoader.ordered

    def all_but_the_last(self: Any, *arguments: Any, **options: Any) -> Any:
        return list(whole(self, *arguments, **options))[:-1]

    monkeypatch.setattr(RoleLoader, "ordered", all_but_the_last)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize(
    ("plant", "code", "said"),
    [
        (a_lost_layer, 1, "regression: exact size.total"),
        (a_changed_metric, 1, "regression: golden metrics.left.accuracy"),
        (a_dropped_batch, 4, "CoverageError"),
    ],
)
def test_a_planted_fault_is_caught(
    real: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    code: int,
    said: str,
) -> None:
    plant(monkeypatch)
    run_cell(planned(), RunSettings(tmp_path))
    found, text = check(tmp_path, real)
    assert found == code, text
    assert said in text


def test_a_changed_seed_is_unpaired(real: Path, tmp_path: Path) -> None:
    run_cell(planned(seed=1), RunSettings(tmp_path))
    code, text = check(tmp_path, real)
    assert code == 4, text
    assert "unpaired: the same cell is there with seed 1" in text
    assert "regression:" not in text


@pytest.mark.slow
def test_a_forward_that_is_slower_by_a_quarter_is_caught(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.records.measurements import light_settings
    from benchmark.speed import networks as speed_networks
    from benchmark.speed.jobs import SpeedJob, TableJob
    from benchmark.speed.session import measure_table
    from benchmark.speed.timing import SpeedProtocol, WarmUpRule

    root = tmp_path / "run"
    shutil.copytree(real.parent / "run", root)
    (record,) = Store(root).load_all()
    assert not record.is_reference
    table = TableJob("gate", {record.key: ("joint",)})
    protocol = SpeedProtocol(warm_up=WarmUpRule(limit_s=5.0))

    def measure(number: int) -> None:
        for _ in range(5):
            found = measure_table(SpeedJob(root, (table,), light_settings("cpu"), protocol), table)
            if found.aa is not None and abs(found.aa - 1.0) <= 0.03:
                write_measurement(root, dataclasses.replace(found, started=f"2030-01-01T00:00:{number:02}Z"))
                return
        pytest.skip(f"this machine is too busy to measure on: A/A {found.aa}")

    for number in range(3):
        measure(number)
    file = tmp_path / "gate.json"
    assert accept(root, file, "first")[0] == 0
    measure(3)
    code, text = check(root, file)
    assert code == 0, text
    inference = speed_networks.TableNetworks.inference

    def slower(self: Any, *arguments: Any) -> Any:
        network = inference(self, *arguments)

        def step() -> object:
            begin = time.perf_counter()
            result = network.step()
            end = begin + 1.25 * (time.perf_counter() - begin)
            while time.perf_counter() < end:
                pass
            return result

        return dataclasses.replace(network, step=step)

    monkeypatch.setattr(speed_networks.TableNetworks, "inference", slower)
    measure(4)
    code, text = check(root, file)
    assert code == 1, text
    assert "regression: speed r joint" in text


def test_the_shipped_baseline_is_that_of_the_shipped_suite() -> None:
    baseline = read_baseline(Path(__file__).parents[3] / "results" / "baselines" / "gate.json")
    assert baseline.cells.keys() == {cell.key for cell in plan(select("gate"))}
    assert baseline.reason
