"""From a record to a file that somebody else runs: equal predictions, in a process that never saw the training."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from benchmark import export as command
from benchmark import load_network
from benchmark.deploy.export import Form, export_network, onnx_inputs
from benchmark.deploy.find import find_record
from benchmark.deploy.network import DESCRIPTION_FIELD, DeployedNetwork, NetworkDescription
from benchmark.records.store import Store
from datasets.errors import UsageError
from tests.unit.cells import planned, store_cells
from tests.unit.graphs import operation
from tests.unit.made_records import make_failure, make_record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    store_cells(root, planned())
    return root


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    store_cells(root, planned("mnist_two_domains"))
    return root


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def elsewhere(code: str, *arguments: object) -> str:
    """What a fresh process prints."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Loading


def test_a_loaded_network_gives_what_the_stored_graph_gives(run: Path) -> None:
    network = load_network(run, "hard_sharing")
    assert not network.training
    images = torch.randn(3, 3, 36, 36)
    expected = network.graph.module().eval()({"image": images})
    found = network(images)
    assert list(found) == ["left", "right"]
    assert all(torch.equal(found[task], expected[task]) for task in expected)
    with torch.inference_mode():
        assert torch.equal(network({"image": images})["left"], found["left"])


def test_the_description_says_what_to_feed_and_what_comes_out(run: Path) -> None:
    described = load_network(run, "single_task").description
    assert described.inputs["image"].shape == (3, 36, 36)
    assert described.normalisation.channels == "RGB"
    assert described.normalisation.mean == (0.1, 0.1, 0.1)
    assert described.tasks["left"].kind == "class"
    assert described.tasks["left"].shape == (10,)
    assert len(described.tasks["left"].class_names) in (0, 10)
    assert described.data["dataset"] == "multi_mnist"
    assert described.data["licence"]
    assert NetworkDescription.from_json(described.to_json()) == described


def test_normalise_is_the_one_of_training(run: Path) -> None:
    network = load_network(run, "hard_sharing")
    images = torch.rand(2, 3, 36, 36)
    assert torch.equal(network.normalise(images), (images - 0.1) / 0.2)
    description = network.description
    reversed_channels = dataclasses.replace(
        description.normalisation, channels="BGR", mean=(0.0, 0.0, 0.5), std=(1.0, 1.0, 1.0)
    )
    found = reversed_channels(images)
    assert torch.equal(found[:, 0], images[:, 2])
    assert torch.equal(found[:, 2], images[:, 0] - 0.5)


def test_some_tasks_take_their_part_of_the_network(run: Path, domains: Path) -> None:
    whole, part = load_network(run, "single_task"), load_network(run, "single_task", tasks=["right"])
    images = torch.randn(2, 3, 36, 36)
    assert torch.equal(part(images)["right"], whole(images)["right"])
    assert list(part.description.tasks) == ["right"]
    assert sum(p.numel() for p in part.parameters()) * 2 == sum(p.numel() for p in whole.parameters())
    task = next(iter(load_network(domains, "hard_sharing").description.tasks))
    alone = load_network(domains, "hard_sharing", tasks=[task])
    assert list(alone.description.inputs) == [task]
    assert list(alone(alone.example(2)[task])) == [task]


def test_several_inputs_are_a_dictionary(domains: Path) -> None:
    network = load_network(domains, "hard_sharing")
    assert len(network(network.example(2))) == 2
    with pytest.raises(UsageError, match="give a dictionary"):
        network(torch.randn(2, 3, 28, 28))
    with pytest.raises(UsageError, match="are missing"):
        network({"image": torch.randn(2, 3, 28, 28)})


def test_every_way_to_name_a_record_finds_it(run: Path) -> None:
    store = Store(run)
    record = next(one for one in store.load_all() if one.cell["method"]["name"] == "hard_sharing")
    path = store.record_path(record)
    weights = load_network(run, "hard_sharing").graph.weights_hash()
    for network in (
        load_network(path),
        load_network(str(run), record.key[:6]),
        load_network(run, record.key),
        load_network(record, out=run),
        load_network(run, "hard_sharing", seed=0),
    ):
        assert network.graph.weights_hash() == weights


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hard_sharin"], "Nearest: 'hard_sharing'"),
        (["ffff"], "No cell's key starts with 'ffff'. Nearest: "),
        ([], "Which row?"),
        (["hard_sharing", "--seed", "7"], "has no seed 7; it has 0"),
        (["hard_sharing", "--task", "lft"], "Nearest: 'left'"),
        (["hard_sharing", "--task", ","], "No task is named; the network has left, right"),
        (["hard_sharing", "--batch", "two"], "expected dynamic, or a whole number"),
        (["hard_sharing", "--to", "safetensors", "--batch", "2"], "take any batch"),
        (["hard_sharing", "--plugin", "none.py"], "none.py does not exist"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = invoke(run, *arguments, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "file").exists()


def test_what_is_no_record_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    for source, words in (
        (tmp_path, "holds no records"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "no.json", "is not a record"),
    ):
        result = invoke(source)
        assert result.exit_code == 2
        assert words in result.stderr
    path = next((run / "records").rglob("*.json"))
    copied = tmp_path / path.name
    copied.write_bytes(path.read_bytes())
    assert "outside of its run's folder" in invoke(copied).stderr


def test_a_row_of_several_tables_or_without_a_network_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for steps in (100, 200):
        store.write(make_record("mine", 0, budget={"steps": steps}))
    with pytest.raises(UsageError, match=r"'mine' is 2 rows.* = mine on toy .*; .* = mine on toy"):
        find_record(tmp_path, "mine")
    store.write(make_failure("broken", 0))
    with pytest.raises(UsageError, match=r"no cell that is done .seed 0: oom"):
        find_record(tmp_path, "broken")
    with pytest.raises(UsageError, match="is oom; only a cell that is done"):
        load_network(find_record(tmp_path, "broken", 0)[1], out=tmp_path)


def test_the_lowest_seed_that_is_done_stands_for_a_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(make_failure("mine", 0))
    for seed in (2, 1):
        store.write(make_record("mine", seed))
    assert find_record(tmp_path, "mine")[1].cell["seed"] == 1
    assert find_record(tmp_path, "mine", 2)[1].cell["seed"] == 2


def test_a_record_that_does_not_say_what_to_feed_is_refused(tmp_path: Path) -> None:
    record = store_cells(tmp_path, planned())["hard_sharing"]
    for audit in ({"input_size": [36, 36]}, {"normalisation": {"mean": [0.0], "std": [1.0], "bgr": False}}):
        silent = Store(tmp_path).write(dataclasses.replace(record, audit=audit))
        with pytest.raises(UsageError, match="does not say what its network was fed"):
            load_network(silent, out=tmp_path)


def test_weights_that_are_gone_or_changed_are_one_line(tmp_path: Path) -> None:
    record = store_cells(tmp_path, planned())["hard_sharing"]
    weights = tmp_path / record.artifacts["weights"]["file"]
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + b"\1\1\1\1")
    assert "changed after it was written. artifacts/ belongs beside" in invoke(tmp_path, "hard_sharing").stderr
    weights.unlink()
    result = invoke(tmp_path, "hard_sharing")
    assert result.exit_code == 2
    assert "artifacts/ belongs beside records/: copy it there, or delete the record" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# Files


PT2 = """
import sys, torch
assert "benchmark" not in sys.modules
for file, cases in zip(sys.argv[1::2], sys.argv[2::2]):
    extra = {"sharebench.json": ""}
    network = torch.export.load(file, extra_files=extra).module()
    stored = torch.load(cases, weights_only=True)
    for images, expected in zip(stored["images"], stored["expected"]):
        found = network(images)
        assert list(found) == list(expected)
        for task in expected:
            torch.testing.assert_close(found[task], expected[task], rtol=1e-6, atol=1e-6)
    text = extra["sharebench.json"]
    print(text.decode() if isinstance(text, bytes) else text)
"""


def saved_cases(network: DeployedNetwork, path: Path, single: bool) -> Path:
    """Images and predictions at batch sizes 1 and 5 for another process."""
    cases = [network.example(batch) for batch in (1, 5)]
    with torch.inference_mode():
        expected = [network(images) for images in cases]
    images = [case["image"] if single else case for case in cases]
    torch.save({"images": images, "expected": [dict(one) for one in expected]}, path)
    return path


def test_a_pt2_file_gives_the_same_without_us(run: Path, domains: Path, tmp_path: Path) -> None:
    arguments: list[Path] = []
    networks = []
    for folder in (run, domains):
        file = tmp_path / f"{folder.name}.pt2"
        result = invoke(folder, "hard_sharing", "--out", file)
        assert result.exit_code == 0, result.output
        assert "largest difference from the network 0" in result.stdout
        networks.append(load_network(folder, "hard_sharing"))
        arguments += [file, saved_cases(networks[-1], file.with_suffix(".cases"), single=folder == run)]
    described = elsewhere(PT2, *arguments).splitlines()
    assert [NetworkDescription.from_json(text) for text in described] == [one.description for one in networks]


def test_a_safetensors_file_comes_back_without_training_code_or_records(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    assert invoke(run, "hard_sharing", "--to", "safetensors", "--out", file).exit_code == 0
    network = load_network(run, "hard_sharing")
    code = (
        "import sys, torch; from benchmark import load_network; network = load_network(sys.argv[1]);"
        "stored = torch.load(sys.argv[2], weights_only=True);"
        "print(all(torch.equal(network(images)[task], value) for images, expected in "
        "zip(stored['images'], stored['expected']) for task, value in expected.items()), "
        "'benchmark.train.trainer' in sys.modules)"
    )
    assert elsewhere(code, file, saved_cases(network, tmp_path / "cases.pt", single=True)).split() == ["True", "False"]
    assert load_network(file).description == network.description
    with safetensors.safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()[DESCRIPTION_FIELD])["cell"] == network.description.cell


def test_other_safetensors_files_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(UsageError, match="weights without their network"):
        load_network(tmp_path / "plain.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load_network(tmp_path / "torn.safetensors")


@pytest.mark.parametrize(
    "kind", [pytest.param("run", marks=pytest.mark.slow), "domains"]
)  # several inputs, each by name
def test_an_onnx_file_gives_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sharebench[onnx]'")
    import onnxruntime

    folder = request.getfixturevalue(kind)
    file = tmp_path / "net.onnx"
    result = invoke(folder, "hard_sharing", "--to", "onnx", "--out", file)
    assert result.exit_code == 0, result.output
    network = load_network(folder, "hard_sharing")
    session = onnxruntime.InferenceSession(str(file))
    names = onnx_inputs(network.description.inputs)
    for batch in (1, 5):
        images = network.example(batch)
        with torch.inference_mode():
            expected = network(images)
        found = session.run(list(expected), {names[name]: value.numpy() for name, value in images.items()})
        for value, task in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(value), expected[task], rtol=1e-4, atol=1e-4)
    properties = session.get_modelmeta().custom_metadata_map
    assert NetworkDescription.from_json(properties["sharebench.json"]) == network.description


def test_onnx_without_its_packages_names_the_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = invoke(run, "hard_sharing", "--to", "onnx")
    assert result.exit_code == 2
    assert "pip install 'sharebench[onnx]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_fixed_batch_takes_no_other(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pt2"
    assert invoke(run, "hard_sharing", "--batch", "2", "--out", file).exit_code == 0
    module = torch.export.load(file).module()
    assert module(torch.zeros(2, 3, 36, 36))["left"].shape == (2, 10)
    with pytest.raises(Exception, match=r"Guard failed|shape"):
        module(torch.zeros(3, 3, 36, 36))


def test_the_default_file_name_says_what_it_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(run, "hard_sharing", "--to", "safetensors", "--task", "left").exit_code == 0
    key = load_network(run, "hard_sharing").description.cell
    assert [path.name for path in tmp_path.iterdir()] == [f"hard_sharing-{key[:8]}-seed0-left.safetensors"]


def test_a_file_that_gives_something_else_is_never_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = torch.export.save

    def other(program: Any, file: Any, **options: Any) -> None:
        name, value = next(iter(program.state_dict.items()))  # it is the network's own: not to be changed in place
        program.state_dict[name] = torch.nn.Parameter(value.detach() + 0.5)
        written(program, file, **options)

    monkeypatch.setattr(torch.export, "save", other)
    result = invoke(run, "hard_sharing", "--out", tmp_path / "net.pt2")
    assert result.exit_code == 1
    assert "differs from the network by" in result.stderr
    assert not list(tmp_path.iterdir())


def test_statistics_belong_to_nodes_in_every_file(run: Path) -> None:
    """One operation on two inputs has two sets of statistics; a file that merged them would give other numbers."""
    from methods.graph.task_graph import TaskGraph

    shared = operation("test.conv_norm", 0)
    graph = TaskGraph(["a", "b"])
    for task in ("a", "b"):
        graph.output(task, graph.add(shared, graph.input(task)))
    first, second = (node.module[1] for node in graph.nodes.values())
    first.running_mean.fill_(0.5)
    second.running_mean.fill_(-0.5)
    assert first.weight is second.weight
    template = load_network(run, "hard_sharing").description
    part, output = template.inputs["image"], template.tasks["left"]
    description = dataclasses.replace(
        template,
        inputs={task: dataclasses.replace(part, shape=(3, 8, 8), tasks=(task,)) for task in ("a", "b")},
        tasks=dict.fromkeys(("a", "b"), output),
    )
    network = DeployedNetwork(graph, description).eval()
    images = torch.randn(2, 3, 8, 8)
    predictions = network({"a": images, "b": images})
    assert not torch.equal(predictions["a"], predictions["b"])
    for form in (Form.pt2, Form.safetensors):
        assert export_network(network, form)[1] == 0.0
