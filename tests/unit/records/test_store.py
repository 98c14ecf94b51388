"""Records on disk: canonical bytes, keys, torn writes, forged files, locks, artifacts (measurement 9, K1, K2)."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.records import store as store_module
from benchmark.records.keys import CanonicalError, canonical_json, cell_key, table_key
from benchmark.records.record import Record, curve_json, metrics_json, result_hash
from benchmark.records.store import StorageError, Store, safe_name, write_atomic
from datasets.errors import UsageError
from tests.unit.made_records import make_cell, make_failure, make_record

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-zA-Z_]{1,6}", fullmatch=True), inner)
    ),
    max_leaves=12,
)


# canonical form


def test_k1():
    data = canonical_json({"b": [1.5, "é"], "a": 1})
    assert data == '{"a":1,"b":[1.5,"é"]}'.encode()
    assert hashlib.sha256(data).hexdigest() == "2bb202b35963ad9e57f87e5828e072cc53f4720ecd10a7d625f850411a31c4c6"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"x": 1.0}, '{"x":1.0}'),  # 1 and 1.0 are different cells
        ({"x": 1}, '{"x":1}'),
        ({"x": -0.0}, '{"x":0.0}'),
        ({"x": [0.1, 1e-7, 1e22, 5e-324]}, '{"x":[0.1,1e-07,1e+22,5e-324]}'),
        ({"x": True, "y": None}, '{"x":true,"y":null}'),
        ({"x": (1, 2)}, '{"x":[1,2]}'),
        ({"x": np.float64(0.1)}, '{"x":0.1}'),
        ({"e\u0301": "e\u0301"}, '{"é":"é"}'),  # NFD in, NFC out
        ({"x": 'a"\\\n\u007f/'}, '{"x":"a\\"\\\\\\n\u007f/"}'),
        ({"\ue000": 1, "\U00010000": 2}, '{"\ue000":1,"\U00010000":2}'),  # by code point, not by UTF-16 unit
        ({"B": 1, "a": 2, "_": 3}, '{"B":1,"_":3,"a":2}'),
    ],
)
def test_canonical_form(value, text):
    assert canonical_json(value).decode() == text


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [0.0, float("nan")]}}, r"a\.b\.1 is nan"),
        ({"a": float("-inf")}, "a is -inf"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": {1, 2}}, "a is a set"),
        ({"a": np.float32(1)}, "a is a float32"),
        ({"a": np.zeros(2)}, "a is a ndarray"),
        ({"a": Path("x")}, "a is a "),
        ({"a": "\ud800"}, "a: .* is not valid Unicode"),
        ({"é": 1, "e\u0301": 2}, "twice"),
        (float("nan"), "The value is nan"),
    ],
)
def test_refused_values_are_named_by_their_path(value, place):
    with pytest.raises(CanonicalError, match=place):
        canonical_json(value)


@given(JSON)
def test_canonical_form_round_trips_and_is_a_fixed_point(value):
    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data


def _shuffled(value: object, random) -> object:
    if isinstance(value, dict):
        items = [(name, _shuffled(item, random)) for name, item in value.items()]
        random.shuffle(items)
        return dict(items)
    return [_shuffled(item, random) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(TEXT.filter(str.isascii), JSON), st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_key_order(params, random):
    cell = make_cell(params=params)
    assert cell_key(_shuffled(cell, random)) == cell_key(cell)
    assert table_key(_shuffled(cell, random)) == table_key(cell)


def test_cell_key_is_the_start_of_the_sha256():
    cell = make_cell()
    assert cell_key(cell) == hashlib.sha256(canonical_json(cell)).hexdigest()[:32]


def test_table_key_ignores_method_and_seed_and_nothing_else():
    base = table_key(make_cell("a", 0))
    assert len(base) == 12
    assert table_key(make_cell("b", 7, {"x": 1})) == base
    for section in ("data", "backbone", "head", "recipe", "selection", "budget"):
        assert table_key(make_cell("a", 0, **{section: {"changed": 1}})) != base


def test_a_record_hashes_its_cell_once(monkeypatch):
    asked = []
    monkeypatch.setattr("benchmark.records.record.cell_key", lambda cell: asked.append(cell) or "k")
    record = make_record()
    assert (record.key, record.key) == ("k", "k")
    assert len(asked) == 1
    assert dataclasses.replace(record, cell=make_cell(seed=1)).key == "k"
    assert len(asked) == 2  # a copy with another cell has another key


def test_curves_hold_null_for_what_is_not_finite():
    assert curve_json([1, float("nan"), float("inf"), 0.5]) == [1.0, None, None, 0.5]


def test_scores_become_json():
    from methods.contracts import Score

    stored = metrics_json({"t": {"m": Score(1, "percent", True, 3), "n": Score(float("inf"), "ratio", False, 3, 1)}})
    assert stored["t"]["m"]["value"] == 1.0
    assert isinstance(stored["t"]["m"]["value"], float)
    assert stored["t"]["n"] == {
        "value": None,
        "unit": "ratio",
        "higher_is_better": False,
        "n_units": 3,
        "n_nonfinite": 1,
        "detail": {},
    }


# write and read


def test_a_record_comes_back_whole(tmp_path):
    store = Store(tmp_path)
    written = store.write(dataclasses.replace(make_record(), curves={"loss": curve_json([1.0, float("nan")])}))
    assert store.read(written.key) == written == store.load_all()[0]
    assert written.curves == {"loss": [1.0, None]}
    path = store.record_path(written)
    assert path.relative_to(tmp_path).as_posix() == (
        f"records/{table_key(written.cell)}/{written.key[:2]}/{written.key}.json"
    )
    assert canonical_json(json.loads(path.read_bytes())) == path.read_bytes()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(st.sampled_from(["left", "right"]), st.floats(0, 100), min_size=1),
    audit=JSON,
    seed=st.integers(0),
)
def test_round_trip_of_any_content(tmp_path, values, audit, seed):
    store = Store(tmp_path)
    scores = {task: {"accuracy": value} for task, value in values.items()}
    written = store.write(make_record(seed=seed, values=scores, audit={"any": audit}))
    assert store.read(written.key) == written
    assert canonical_json(written.audit["any"]) == canonical_json(audit)


def test_record_hash_is_over_the_bytes_with_zeros_in_its_place(tmp_path):
    store = Store(tmp_path)
    record = store.write(make_record())
    data = store.record_path(record).read_bytes()
    assert data.count(record.record_hash.encode()) == 1
    assert hashlib.sha256(data.replace(record.record_hash.encode(), b"0" * 64)).hexdigest() == record.record_hash


def test_nested_hashes_do_not_confuse_reading(tmp_path):
    inner = {"record_hash": "0" * 64, "result_hash": "1" * 64}
    text = '"record_hash":"' + "0" * 64 + '"'
    record = Store(tmp_path).write(make_record(audit={"copy": inner, "text": text}))
    assert Store(tmp_path).read(record.key) == record


def test_editing_any_digit_makes_the_record_invalid(tmp_path):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    data = path.read_bytes()
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    assert len(places) > 200  # the digits of both hashes among them
    for place in places:
        digit = b"%d" % ((data[place] - ord("0") + 1) % 10)
        path.write_bytes(data[:place] + digit + data[place + 1 :])
        read = store.read(record.key)
        assert read.status == "invalid", place
        assert not store.is_done(record.key)
    path.write_bytes(data)
    assert store.is_done(record.key)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_raises_or_passes(tmp_path, data):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=6)) + whole[end:]
    path.write_bytes(damaged)
    read = store.load_all()[0]
    assert (read.status == "invalid") == (damaged != whole)
    path.write_bytes(whole)


def _forged(document: dict) -> bytes:
    """Bytes whose record_hash is right, whatever they say."""
    document = {**document, "record_hash": "0" * 64}
    digest = hashlib.sha256(canonical_json(document)).hexdigest()
    return canonical_json({**document, "record_hash": digest})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2; this version reads schema 1"),
        ({"status": "splendid"}, "status 'splendid'"),
        ({"status": "invalid"}, "status 'invalid'"),
        ({"status": "oom"}, "without an error"),
        ({"metrics": {"t": {"m": {}}}}, "metrics.t.m.value is missing"),
        ({"metrics": {"t": 1}}, "metrics.t has the wrong type or value"),
        ({"attempts": True}, "attempts has the wrong type or value"),
        ({"cell": {}}, "cell.method is missing"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"error": {"kind": "x"}}, "error.message is missing"),
    ],
)
def test_foreign_json_with_a_right_hash_is_invalid_with_the_reason(tmp_path, change, words):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    path.write_bytes(_forged({**json.loads(path.read_bytes()), **change}))
    read = store.read(record.key)
    assert read.status == "invalid"
    assert words in read.error["message"]
    assert path.name in read.error["message"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema":NaN}', b'{"schema":1}', b'"\\ud800"'],
)
def test_rubbish_is_invalid_and_never_raises(tmp_path, data):
    path = tmp_path / "records" / "t" / "aa" / f"{'a' * 32}.json"
    write_atomic(path, data)
    (record,) = Store(tmp_path).load_all()
    assert record.status == "invalid"
    assert len(record.error["message"].splitlines()) == 1
    assert record.key == ""


@pytest.mark.parametrize("stated", ["\ud800", "A" * 64, "", "0" * 63])
def test_a_record_hash_that_is_none_is_invalid(tmp_path, stated):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "record_hash": stated}))
    assert "not a sha256" in store.read(record.key).error["message"]


def test_unreadable_file_is_invalid(tmp_path):
    (tmp_path / "records" / "t" / "aa" / f"{'a' * 32}.json").mkdir(parents=True)
    assert Store(tmp_path).read("a" * 32).status == "invalid"


def test_a_file_under_another_cells_name_is_invalid(tmp_path):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    other = path.with_name(f"{path.stem[:2]}{'0' * 30}.json")
    path.rename(other)
    assert "not the key of its cell" in store.read(other.stem).error["message"]


def test_merged_folders_do_not_count_a_cell_twice(tmp_path):
    store = Store(tmp_path)
    record = store.write(make_record())
    path = store.record_path(record)
    write_atomic(tmp_path / "records" / "zz" / path.parent.name / path.name, path.read_bytes())
    first, second = store.load_all()
    assert first == record
    assert "second record" in second.error["message"]


def test_absent_records(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert store.load_all() == []
    assert store.read("0" * 32) is None
    assert not store.is_done("0" * 32)


def test_a_failure_is_stored_and_is_no_cache_hit(tmp_path):
    store = Store(tmp_path)
    record = store.write(make_failure("dmo", 1, "timeout"))
    assert store.read(record.key).status == "timeout"
    assert not store.is_done(record.key)


def test_rerunning_keeps_the_old_record_in_history(tmp_path):
    store = Store(tmp_path)
    failed = store.write(make_failure("hard_sharing", 0))
    old = store.record_path(failed).read_bytes()
    done = store.write(dataclasses.replace(make_record("hard_sharing", 0), attempts=2))
    assert done.key == failed.key
    assert store.load_all() == [done]
    (kept,) = (tmp_path / "history").rglob("*.json")
    assert kept.read_bytes() == old


@pytest.mark.parametrize(
    "record",
    [
        Record(cell=make_cell(), status="finished"),
        Record(cell=make_cell(), status="failed"),
        dataclasses.replace(
            make_record(), metrics={"t": {"m": {**make_record().metrics["semseg"]["miou"], "value": 1}}}
        ),
        dataclasses.replace(make_record(), audit={"x": float("nan")}),
    ],
)
def test_what_reading_would_refuse_is_not_written(tmp_path, record):
    with pytest.raises(UsageError):
        Store(tmp_path).write(record)
    assert not list(tmp_path.rglob("*.json"))


# result hash


def test_result_hash_ignores_when_where_and_how_often():
    record = make_record()
    later = dataclasses.replace(
        record,
        attempts=3,
        started="2031-01-01T00:00:00Z",
        finished="2031-02-01T00:00:00Z",
        environment={"device": "other"},
        cost={"search": {"seconds": 9e9}},
        versions={**record.versions, "torch": "9"},
        audit={},
        graph={**record.graph, "file": "elsewhere.json"},
    )
    assert result_hash(later) == result_hash(record)


def test_result_hash_covers_what_must_be_reproducible():
    record = make_record()
    weights = {"kind": "weights", "file": "x", "sha256": "0" * 64}
    changes = {
        "cell": make_cell(seed=1),
        "roles": {**record.roles, "fit": "z"},
        "n_evaluated": {"semseg": 99},
        "metrics": make_record(values={"semseg": {"miou": 44.00000000000001}}).metrics,
        "size": {"total": 1},
        "compute": {"macs_sum": 1},
        "graph": {"hash": "h"},
        "versions": {"weights_hash": "0"},
        "artifacts": {"weights": weights},
    }
    hashes = {name: result_hash(dataclasses.replace(record, **{name: value})) for name, value in changes.items()}
    assert result_hash(record) not in hashes.values()
    moved = dataclasses.replace(record, artifacts={"weights": {**weights, "file": "y"}})
    assert result_hash(moved) == hashes["artifacts"]


# the one write function


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("step", ["open", "fsync", "replace", "mkdir"])
def test_k2_system_errors_keep_the_old_record_and_leave_no_debris(tmp_path, monkeypatch, code, step):
    store = Store(tmp_path)
    old = store.write(make_record())

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(StorageError, match=os.strerror(code)) as caught:
            write_atomic(store.record_path(old), b"new")
        assert str(store.record_path(old)) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert store.read(old.key) == old
    assert not list(tmp_path.rglob("*.tmp"))


def test_k2_killed_between_write_and_replace(tmp_path):
    store = Store(tmp_path)
    old = store.write(make_record())
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from benchmark.records.store import write_atomic\n"
        "Path.replace = lambda *arguments: os._exit(9)\n"
        "write_atomic(Path(sys.argv[1]), b'half')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.record_path(old))], check=False, timeout=300)
    assert done.returncode == 9
    assert len(list(tmp_path.rglob("*.tmp"))) == 1  # nobody was left to remove it; it disturbs nobody
    assert store.load_all() == [old]
    assert store.write(make_record(seed=1)).status == "done"


def test_an_interrupt_removes_the_temporary_file(tmp_path, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"data")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_synced_are_accepted_and_broken_disks_are_not(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(code: int) -> None:
        calls: list[int] = []

        def second_fails(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 2:
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", second_fails)

    refuse(errno.EINVAL)
    write_atomic(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"
    refuse(errno.EIO)
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "x", b"data")


def test_files_are_readable_to_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "x", b"data")
    finally:
        os.umask(before)
    assert os.name == "nt" or (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_racing_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "x"
    contents = [bytes([letter]) * 100_000 for letter in b"abcd"]
    threads = [threading.Thread(target=write_atomic, args=(path, content)) for content in contents * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [path] == list(tmp_path.iterdir())


# locks, artifacts, names


def test_a_held_lock_is_one_clear_line_and_a_free_one_is_taken(tmp_path):
    store, key = Store(tmp_path), "a" * 32
    busy = pytest.raises(StorageError, match=f"Cell {key} is being worked on by another process")
    with store.lock(key):
        with busy, Store(tmp_path).lock(key, timeout_s=0.0):
            pass
        with store.lock("b" * 32, timeout_s=0.0):
            pass
    with Store(tmp_path).lock(key, timeout_s=0.0):
        pass


def test_errors_inside_a_lock_pass_and_free_it(tmp_path):
    store, key = Store(tmp_path), "a" * 32
    with pytest.raises(OSError, match="inner"), store.lock(key):
        raise OSError("inner")
    with store.lock(key, timeout_s=0.0):
        pass


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 32, "a" * 31])
def test_keys_are_checked_before_they_become_paths(tmp_path, key):
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="not a cell key"):
        store.read(key)
    with pytest.raises(UsageError, match="not a cell key"):
        store.write_artifact(key, "x", b"", "array")


def test_artifacts_are_verified(tmp_path):
    store, key = Store(tmp_path), "ab" * 16
    stored = store.write_artifact(key, "affinity", b"data", "array")
    digest = hashlib.sha256(b"data").hexdigest()
    assert stored == {"kind": "array", "file": f"artifacts/ab/{key}/affinity.npy", "sha256": digest}
    assert store.read_artifact(stored) == b"data"
    (tmp_path / stored["file"]).write_bytes(b"date")
    with pytest.raises(StorageError, match="does not match"):
        store.read_artifact(stored)
    (tmp_path / stored["file"]).unlink()
    with pytest.raises(StorageError, match="Cannot read"):
        store.read_artifact(stored)
    with pytest.raises(StorageError, match="outside"):
        store.read_artifact({**stored, "file": "../outside.npy"})


@given(st.lists(st.text(max_size=80), unique=True, max_size=6))
def test_file_names_are_safe_on_every_system_and_never_collide(names):
    files = [safe_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    for file in files:
        assert 0 < len(file) < 80
        assert set(file) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        assert file not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


def test_file_names_stay_readable():
    assert safe_name("policy_left") == "policy_left"
    assert safe_name("Gate/Left").startswith("gate-left-")
    assert safe_name("aux").startswith("aux-")


def test_reading_records_needs_no_torch():
    code = "import sys, benchmark.report\nassert not {'torch', 'numpy', 'pandas', 'filelock'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_folder_holds_records_where_any_file_of_one_is_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    assert not store.holds_records()
    path = store.record_path(make_record())
    path.parent.mkdir(parents=True)
    assert not store.holds_records()
    path.write_text("torn")
    monkeypatch.setattr(Path, "read_bytes", None)  # nothing is read
    assert store.holds_records()


def test_a_record_is_parsed_once_and_again_after_a_change(tmp_path, monkeypatch):
    """A run on a finished suite asks five times for each record; a file that may still change is read every time."""
    parsed = []
    real = store_module.parse_record
    monkeypatch.setattr(store_module, "parse_record", lambda data: parsed.append(1) or real(data))
    record = Store(tmp_path).write(make_record())
    path = Store(tmp_path).record_path(record)
    parsed.clear()
    for _ in range(3):
        assert Store(tmp_path).read(record.key) == record
    assert len(parsed) == 3
    data = path.read_bytes()
    os.utime(path, (1e9, 1e9))
    for _ in range(3):
        assert Store(tmp_path).load_all() == [record]
    assert len(parsed) == 4
    path.write_bytes(data.replace(b'"attempts":1', b'"attempts":2'))
    assert Store(tmp_path).read(record.key).status == "invalid"


def test_several_runs_may_start_at_once_on_one_folder(tmp_path):
    """A job array: each start looks whether it can write, and none takes away what another is about to."""

    def start(_: int) -> None:
        for _ in range(50):
            Store(tmp_path / "out").require_writable()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    assert not list((tmp_path / "out").iterdir())
