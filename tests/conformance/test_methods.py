"""What every registered method must keep, whatever it does: a method is tested by lying in its folder.

All in one file, because tests of one file run in one process and share the trained networks.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import get_args

import matplotlib.pyplot as plt
import pytest
import torch

from benchmark.deploy.export import Form, export_network
from benchmark.deploy.network import (
    DeployedNetwork,
    InputDescription,
    NetworkDescription,
    Normalisation,
    OutputDescription,
)
from benchmark.show.plots import draw
from datasets.contracts import TaskSpec
from datasets.errors import UsageError
from methods.backbones.backbone import BackboneConfig, create_backbone
from methods.contracts import Budget, Fidelity, Role
from methods.figures import Figure
from methods.graph.cost import compute, node_costs
from methods.graph.task_graph import TaskGraph
from methods.plain import plain_graph, task_losses
from methods.registry import declared_methods, get_method, method_names
from methods.traits import Backbones, Labels, Passes, Shared, Traits
from tests.conformance.test_pairs import PARAMS, REFUSED
from tests.conformance.trained import BATCH, CASES, STEPS, build, trained, watched
from tests.unit.harness import toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome

# By default each method on the kinds of data in turn; the whole product is marked slow.
RESUMED = [
    case if (method_names().index(case[0]) % 2 == 0) == (case[1] == "single") or (case[0], "multi") not in CASES
    else pytest.param(*case, marks=pytest.mark.slow)
    for case in CASES
]  # fmt: skip
DRAWN: set[str] = set()  # panels, without their numbers
WRITTEN: set[frozenset[tuple[str, str]]] = set()  # kinds of operations of a network
CASES_IN_TURN = [
    pytest.param(name, domains, marks=() if domains == "single" else pytest.mark.slow) for name, domains in CASES
]


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_deployed_network_serves_all_tasks_and_holds_nothing_else(name: str, domains: str) -> None:
    trainer, graph = trained(name, domains)
    graph = copy.deepcopy(graph)
    assert set(graph.tasks) == {"a", "b"}
    assert build(name).alternates == bool(trainer.search_roles & {Role.FIT, Role.ARCH})
    graph.require_deployable()
    network = graph.network().train()
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    sum(task_losses(trainer.data, network)(batch, ("a", "b")).values()).backward()
    dead = [tuple(p.shape) for p in graph.parameters() if p.grad is None]
    assert not dead, f"parameters that no task reads: {dead}"


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_exported_network_is_deterministic_and_comes_back(name: str, domains: str) -> None:
    trainer, graph = trained(name, domains)
    batch = next(iter(trainer.context.loaders[Role.FIT].training(("a", "b"), 0, 1, "x")))
    again = TaskGraph.from_json(graph.to_json(), graph.tensors())
    # A file holds no memory format; in that of the training the same kernels run.
    networks = graph.network(), graph.network(), again.network().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        first, second, third = (network.eval()(batch.images, ("a", "b")) for network in networks)
    for task, value in first.items():
        assert torch.equal(value, second[task])
        assert torch.equal(value, third[task])


@pytest.mark.parametrize(("name", "domains"), RESUMED)
def test_same_seed_same_bits_and_a_killed_run_ends_there_too(name: str, domains: str, tmp_path: Path) -> None:
    expected = outcome(*trained(name, domains))
    killed = toy_trainer(tmp_path, domains=domains, steps=STEPS, checkpoint_steps=2)
    kill_after(killed, 4)
    with pytest.raises(Killed):
        build(name).run(killed)
    resumed = toy_trainer(tmp_path, domains=domains, steps=STEPS)
    assert outcome(resumed, build(name).run(resumed)) == expected


def test_another_seed_gives_other_weights() -> None:
    """For the backbone and the order of batches, which no method draws by itself."""
    hashes = {trained("hard_sharing", "single", seed)[1].weights_hash() for seed in range(2)}
    assert len(hashes) == 2


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_training_reads_neither_select_nor_report(name: str, domains: str) -> None:
    asked = watched(name, domains)[0].asked
    assert asked
    assert not {Role.SELECT, Role.REPORT} & asked


@pytest.mark.parametrize(("name", "domains"), CASES)
def test_the_final_training_has_the_steps_of_the_budget(name: str, domains: str) -> None:
    trainer, graph = trained(name, domains)
    final, search = trainer.ledger.final, trainer.ledger.search
    assert final.optimizer_steps >= STEPS
    assert final.optimizer_steps % STEPS == 0  # several networks, each with the whole budget
    assert final.images >= final.optimizer_steps * 8
    assert trainer.weight_steps(graph) >= STEPS
    if search.optimizer_steps == 0:
        assert trainer.weight_steps(graph) == STEPS


@pytest.mark.parametrize("name", method_names())
def test_what_methods_store_can_be_drawn(name: str) -> None:
    """From JSON and back. Panels that differ in their numbers alone, as those of the places do, are drawn once."""
    for domains in ("single", "multi"):
        if (name, domains) not in CASES:
            continue
        for stored in trained(name, domains)[0].figures.values():
            figure = Figure.model_validate_json(stored.model_dump_json())
            assert figure == stored
            forms = {re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "0", panel.model_dump_json()): panel for panel in figure.panels}
            panels = [panel for form, panel in forms.items() if form not in DRAWN]
            DRAWN.update(forms)
            if panels:
                plt.close(draw(figure.model_copy(update={"panels": tuple(panels)})))


def test_no_two_methods_are_one_network() -> None:
    """Methods that choose an architecture may choose the same one, and equal networks then train to equal bits; but not
    at every seed.
    """
    alike = [method_names()]
    for seed in range(3):
        found: list[list[str]] = []
        for names in alike:
            by_weights: dict[str, list[str]] = {}
            for name in names:
                weights = trained(name, "single", seed)[1].weights_hash()
                by_weights.setdefault(weights, []).append(name)
            found += [group for group in by_weights.values() if len(group) > 1]
        alike = found
    assert not alike


@pytest.mark.parametrize("name", method_names())
def test_a_method_says_where_it_comes_from(name: str) -> None:
    method = get_method(name)
    assert isinstance(method.fidelity, Fidelity)
    assert method.fidelity.statements
    assert method.__doc__
    assert method.Params.__doc__


# What it says of itself in the table of all methods


@pytest.mark.parametrize("name", declared_methods())
def test_a_method_has_a_row_in_the_table(name: str) -> None:
    """Methods of this package declare their traits; a plug-in's may not."""
    method = get_method(name)
    assert isinstance(method.traits, Traits), f"{name} declares no traits (methods.traits)"
    for value, choices in (
        (method.traits.weights, Shared),
        (method.traits.activations, Shared),
        (method.traits.passes, Passes),
        (method.traits.backbones, Backbones),
        (method.traits.labels, Labels),
    ):
        assert value in get_args(choices)
    if method.traits.size_parameter:
        assert method.traits.size_parameter in method.Params.model_fields


def shared_by_all(read_by: list[int], n_tasks: int) -> str:
    """all, some or none, from how many tasks read each part."""
    if all(n == n_tasks for n in read_by):
        return "all"
    return "some" if any(n > 1 for n in read_by) else "none"


@pytest.mark.parametrize("name", declared_methods())
def test_a_method_shares_and_costs_what_its_traits_say(name: str) -> None:
    """Read off the network and the ledger of a training of two tasks on one image. A search may find less sharing."""
    traits, searches = get_method(name).traits, bool(get_method(name).search_space)
    trainer, graph = trained(name, "single")
    users = graph.users()
    # Parts of the backbone, by themselves or with something of the method's inside.
    nodes = [node for node in graph.nodes.values() if "backbone" in node.operation.config]
    readers: dict[int, set[str]] = {}
    for node in nodes:
        for part, parameter in node.module.named_parameters():
            if part not in node.operation.origins:
                readers.setdefault(id(parameter), set()).update(users[node.name])
    weights = shared_by_all([len(tasks) for tasks in readers.values()], 2)
    activations = shared_by_all([len(users[node.name]) for node in nodes], 2)
    for declared, found in ((traits.weights, weights), (traits.activations, activations)):
        assert declared == found or (declared == "some" and searches)
    size = {"image": (1, 3, *trainer.data.native_size)}
    macs = node_costs(graph, size)
    plain = plain_graph(trainer.data, ["a"], trainer.backbone(), trainer.head)
    passes = sum(macs[node.name].macs for node in nodes) / compute(plain, size).macs_backbone
    low, high = {"1": (1, 1), "T": (2, 2), "1 to T": (1, 2), "up to T": (0, 2)}[traits.passes]
    assert low <= passes <= high
    before = trainer.ledger.search.images / (BATCH * STEPS)
    assert before == pytest.approx(traits.before + 2 * traits.before_per_task, abs=1 / STEPS)


@pytest.mark.parametrize("name", declared_methods())
def test_a_method_takes_the_backbones_and_labels_that_its_traits_say(name: str) -> None:
    """The refusals of tests/conformance/test_pairs.py, and a cell with a label per pixel and one per image."""
    traits = get_method(name).traits
    assert (traits.backbones == "any") == (name not in {method for method, _ in REFUSED})
    data = toy_spec(size=64)
    data = dataclasses.replace(data, tasks=(data.tasks[0], TaskSpec("m", "semantic", 3, ("miou",))))
    backbone = create_backbone(BackboneConfig("test_resnet", image_size=(64, 64)), seed=0)
    method = get_method(name)
    made = method(method.Params(**PARAMS.get(name, {})))
    if traits.labels == "any":
        made.check(data, backbone, Budget(STEPS))
    else:
        with pytest.raises(UsageError, match="tasks of one form"):
            made.check(data, backbone, Budget(STEPS))


# What a comparison holds equal: nobody gets more steps, samples or luck


@pytest.mark.parametrize("name", method_names())
def test_every_network_gets_the_budget_in_steps_and_samples(name: str) -> None:
    run, _ = watched(name)
    assert run.augmentations == {None}
    for stage, drawn in run.final_batches().items():
        assert len(drawn) == STEPS, stage
        assert {len(batch) for batch in drawn} == {BATCH}
        assert stage.startswith("fit+arch"), "final trainings use fit and arch together, for every method"


def test_all_methods_see_the_same_batches_in_the_same_order() -> None:
    orders = {tuple(drawn) for name in method_names() for drawn in watched(name)[0].final_batches().values()}
    assert len(orders) == 1


@pytest.mark.parametrize("name", method_names())
def test_all_methods_start_from_the_same_weights(name: str, tmp_path: Path) -> None:
    expected = toy_trainer(tmp_path).backbone().module().state_dict()
    given = watched(name)[0].given
    assert given
    for state in given:
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_steps_factor_trains_longer_and_is_counted(tmp_path: Path) -> None:
    method = get_method("hard_sharing")
    trainer = toy_trainer(tmp_path, steps=STEPS)
    graph = method(method.Params(steps_factor=2.5)).run(trainer)
    assert trainer.ledger.final.optimizer_steps == 2.5 * STEPS
    assert trainer.weight_steps(graph) == 2.5 * STEPS


# Files that others run


def deployed(name: str, domains: str) -> DeployedNetwork:
    trainer, graph = trained(name, domains)
    graph = copy.deepcopy(graph)
    height, width = trainer.data.native_size
    inputs = {
        source: InputDescription(
            (3, height, width), tuple(task for task in graph.tasks if trainer.data.input_of(task) == source)
        )
        for source in trainer.data.inputs
    }
    tasks = {
        task: OutputDescription("class", (trainer.data.task(task).channels,), (), "", None) for task in graph.tasks
    }
    normalisation = Normalisation("RGB", trainer.data.mean, trainer.data.std)
    description = NetworkDescription(
        "0" * 32, {"name": name, "params": {}}, 0, {}, {}, graph.hash(), "", inputs, normalisation, tasks
    )
    return DeployedNetwork(graph, description).eval()


@pytest.mark.parametrize(("name", "domains"), CASES_IN_TURN)
def test_pt2_gives_the_same_at_every_batch(name: str, domains: str) -> None:
    """Networks of the same operations, as the trees of plain blocks that half of the methods deploy, are written once;
    that a network's shape is kept is a matter of its graph, whoever made it.
    """
    network = deployed(name, domains)
    used = (node.operation for node in network.graph.nodes.values())
    operations = frozenset((operation.kind, str(operation.config.get("part"))) for operation in used)
    if operations in WRITTEN:
        return
    WRITTEN.add(operations)
    _, difference, _ = export_network(network, Form.pt2)
    assert difference is not None
    assert difference <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "domains"), CASES)
def test_onnx_gives_the_same_at_every_batch(name: str, domains: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sharebench[onnx]'")
    _, difference, _ = export_network(deployed(name, domains), Form.onnx)
    assert difference is not None
    assert difference <= 1e-4
