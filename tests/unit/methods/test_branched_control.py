"""Random trees of the size that a choice finds: what every way of choosing trees has to beat at equal size.

Source: measurement 4c; DESIGN 4.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmark.plan.suite_file import find_suite, read_suite
from benchmark.train.stage import KeptNetwork
from benchmark.train.trainer import CellTrainer
from datasets.contracts import Batch, DatasetSpec
from datasets.errors import UsageError
from methods.branched import counting
from methods.branched.bmtas import Bmtas, BmtasParams
from methods.branched.branched import Branched, BranchedParams
from methods.branched.counting import EncoderSize, TreeCounter, size_of, trees_of_size
from methods.branched.learning_to_branch import LearningToBranch, LearningToBranchParams
from methods.branched.random_tree import RandomTree, RandomTreeParams
from methods.branched.segments import segments_of
from methods.branched.tree_method import Chosen
from methods.branched.trees import Tree, apart, labels_of, read_tree, together
from methods.contracts import Budget
from methods.graph.cost import compute, size
from methods.graph.task_graph import TaskGraph
from methods.plain import fit_plain
from tests.unit.harness import toy_backbone, toy_spec, toy_trainer
from tests.unit.kills import Killed, kill_after, outcome
from tests.unit.trees import all_trees

CHOOSING = [
    (Branched, BranchedParams, {"granularity": "block", "budget": 2.9}),
    (Bmtas, BmtasParams, {"n_cycles": 3, "arch_share": 0.5, "lr_arch": 2.0}),
    (LearningToBranch, LearningToBranchParams, {"n_cycles": 3, "arch_share": 0.5, "lr_arch": 2.0}),
]
IDS = [method.__name__ for method, *_ in CHOOSING]


def tasks(n: int, domains: str = "single") -> DatasetSpec:
    spec = toy_spec(domains)
    return dataclasses.replace(spec, tasks=tuple(dataclasses.replace(spec.tasks[0], name=name) for name in "abcde"[:n]))


def three_tasks(folder: Path, steps: int = 4, **context: object) -> CellTrainer:
    """A toy with three different questions about an image, so that there are 35 trees of four blocks."""
    data = tasks(3)
    trainer = toy_trainer(folder, steps=steps, data=data, **context)
    for loader in trainer.context.loaders.values():
        original = loader.training

        def training(wanted: tuple[str, ...], *args: object, original: object = original) -> Iterator[Batch]:
            for batch in original(("a", "b"), *args):
                labels = batch.targets["a"]
                answers = {"a": labels, "b": (labels * 3 + 1) % 4, "c": labels // 2}
                yield Batch(batch.images, {task: answers[task] for task in wanted}, batch.index)

        loader.training = training
    shared = trainer.context

    def single_task(task: str) -> KeptNetwork:
        nested = dataclasses.replace(shared, data=data.with_tasks([task]), single_task=None)
        alone = CellTrainer(nested, folder / f"single-{task}")
        graph, result = fit_plain(alone, f"single task {task}", steps)
        return KeptNetwork(graph, result.loss[task], alone.last_fifths[task], alone.ledger.final, f"key of {task}")

    trainer.context = dataclasses.replace(shared, single_task=single_task)
    return trainer


# Trees of a size


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
    st.data(),
)
def test_trees_of_two_sizes_at_once_are_counted_exactly(
    n: int, costs: list[tuple[int, int]], low: tuple[int, int], width: tuple[int, int], data: st.DataObject
) -> None:
    high = [a + b for a, b in zip(low, width, strict=True)]
    spans = st.tuples(st.integers(1, n), st.integers(1, n + 1)).map(lambda ends: range(*ends))
    allowed = data.draw(st.none() | st.lists(spans, min_size=len(costs), max_size=len(costs)))
    counter = TreeCounter(n, list(zip(*costs, strict=True)), low, high, allowed)
    expected = [
        tree
        for tree in all_trees(n, len(costs))
        if allowed is None or all(len(p) in span for p, span in zip(tree, allowed, strict=True))
        if all(
            a <= sum(len(p) * cost[unit] for p, cost in zip(tree, costs, strict=True)) <= b
            for unit, (a, b) in enumerate(zip(low, high, strict=True))
        )
    ]
    assert counter.total() == len(expected)
    if expected:
        assert counter.draw(torch.Generator().manual_seed(0)) in expected


def distribution(counter: TreeCounter, monkeypatch: pytest.MonkeyPatch) -> dict[Tree, Fraction]:
    """{tree: its exact probability}: every turn that a draw can take is taken once."""
    found: dict[Tree, Fraction] = {}
    ahead: list[list[int]] = [[]]
    taken: list[int] = []
    p = Fraction(1)

    def weighted(weights: Sequence[int], rng: torch.Generator) -> int:
        nonlocal p
        if len(taken) == len(ahead[0]):
            possible = [position for position, weight in enumerate(weights) if weight]
            ahead.extend([*taken, position] for position in possible[1:])
            ahead[0].append(possible[0])
        position = ahead[0][len(taken)]
        taken.append(position)
        p *= Fraction(weights[position], sum(weights))
        return position

    monkeypatch.setattr(counting, "_weighted", weighted)
    while ahead:
        taken, p = [], Fraction(1)
        tree = counter.draw(torch.Generator())
        assert tree not in found
        found[tree] = p
        ahead.pop(0)
    return found


def test_draws_are_uniform_over_the_trees_near_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, and they are the trees that a filter over all finds."""
    segments = segments_of(toy_backbone(), tasks(4), "block")
    asked = EncoderSize(segments.absolute(2.9, "params"), segments.absolute(2.0, "macs"))
    tolerance = 0.15
    expected = [
        tree
        for tree in all_trees(4, 4)
        if abs(segments.size(tree) / asked.parameters - 1) <= tolerance
        and abs(segments.size(tree, "macs") / asked.macs - 1) <= tolerance
    ]
    assert len(expected) == 84
    only_parameters = trees_of_size(segments, 4, EncoderSize(asked.parameters, None), tolerance).total()
    assert only_parameters > len(expected)  # MACs do tell trees apart
    counter = trees_of_size(segments, 4, asked, tolerance)
    assert counter.total() == len(expected)
    assert distribution(counter, monkeypatch) == dict.fromkeys(expected, Fraction(1, 84))
    assert max(asked.deviation(segments, tree) for tree in expected) <= tolerance


# The method random_tree with a size


def test_a_random_tree_has_the_parameters_and_the_compute_asked_for(tmp_path: Path) -> None:
    """As measured on the deployed network."""
    params = RandomTreeParams(granularity="block", size=(2.7, 2.0), size_tolerance=0.08)
    prototype = toy_backbone()
    plain = compute(plain_graph_of(tmp_path), {"image": (1, 3, 8, 8)}).macs_backbone
    trees = set()
    for seed in range(4):
        trainer = three_tasks(tmp_path / str(seed), steps=1, seed=seed)
        graph = RandomTree(params).run(trainer)
        assert size(graph, prototype.n_parameters()).x_backbone == pytest.approx(2.7, rel=0.08)
        assert compute(graph, {"image": (1, 3, 8, 8)}).macs_backbone / plain == pytest.approx(2.0, rel=0.08)
        assert trainer.facts["deviation from the size asked for"]["value"] <= 8
        assert trainer.facts["trees to draw from"]["value"] > 1
        trees.add(trainer.artifacts["tree"].tobytes())
    assert len(trees) > 1


def plain_graph_of(folder: Path) -> TaskGraph:
    """The all-shared tree."""
    return RandomTree(RandomTreeParams(budget=1.0)).run(three_tasks(folder / "plain", steps=1))


def test_sizes_that_no_tree_has_are_refused_at_planning() -> None:
    backbone, data = toy_backbone(), tasks(3)

    def check(tolerance: float = 0.05, of: DatasetSpec = data, **params: object) -> str:
        made = RandomTreeParams(granularity="block", size_tolerance=tolerance, **params)
        return RandomTree(made).check(of, backbone, Budget(10))[0]

    with pytest.raises(UsageError, match=r"No tree's encoder has .* params = 2\.000 x and .* macs = 3\.000 x") as error:
        check(size=(2.0, 3.0))
    (enough,) = [int(word) for word in str(error.value).split() if word.isdigit()][-1:]
    assert str(error.value).endswith(f"within 5 %. The nearest one is within {enough} %.")
    assert check(enough / 100, size=(2.0, 3.0)).startswith("one of ")
    with pytest.raises(UsageError, match="No tree's encoder has"):
        check((enough - 1) / 100, size=(2.0, 3.0))
    assert "the plain backbone" in check(size=(1.0, 1.0))
    assert check(size=(1.0, 1.0)).startswith("one of 1 trees is drawn, within 5 % of 372,688 params = 1.000 x and ")
    assert check(0.0, size=(372_688, None)).startswith("one of 1 trees")
    with pytest.raises(UsageError, match="give null for them"):
        check(of=tasks(3, "multi"), size=(2.7, 2.0))
    assert check(of=tasks(3, "multi"), size=(2.7, None)).startswith("one of ")
    with pytest.raises(ValidationError, match="takes the place of a budget; leave out budget, at_least"):
        RandomTreeParams(size=(2.0, 2.0), budget=2.0, at_least=1.0)


# The control of a method that chooses


@pytest.mark.parametrize(("method", "params", "given"), CHOOSING, ids=IDS)
def test_the_control_is_a_draw_of_the_size_of_what_its_twin_finds(
    method: type, params: type, given: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Chosen] = []
    original = method.find

    def find(self: object, trainer: CellTrainer, segments: object) -> Chosen:
        found.append(original(self, trainer, segments))
        return found[-1]

    monkeypatch.setattr(method, "find", find)
    twin, control = three_tasks(tmp_path / "twin"), three_tasks(tmp_path / "control")
    made = method(params(**given, random_tree=True))
    plain = method(params(**given))
    assert (made.is_random_architecture, plain.is_random_architecture) == (True, False)
    plain.run(twin)
    graph = made.run(control)
    assert found[0].tree == found[1].tree  # the same search, step by step
    assert twin.artifacts["tree"].tolist() == [list(labels_of(p)) for p in found[0].tree]
    segments = segments_of(control.backbone(), control.data, "block")
    drawn = read_tree(tuple(map(tuple, control.artifacts["tree"].tolist())), 3, 4)
    asked = size_of(segments, found[0].tree, control.data)
    assert asked.deviation(segments, drawn) <= 0.05
    measured = size(graph, control.backbone().n_parameters()).backbone
    assert measured == segments.size(drawn)
    assert compute(graph, {"image": (1, 3, 8, 8)}).macs_backbone == pytest.approx(asked.macs, rel=0.05)
    facts = {name: fact["value"] for name, fact in control.facts.items()}
    assert facts["deviation from the size asked for"] == 100 * asked.deviation(segments, drawn)
    space = made.n_copies(3, 4)
    assert facts["trees to draw from"] == trees_of_size(segments, 3, asked, 0.05, space).total() >= 1
    assert twin.ledger.search.optimizer_steps == control.ledger.search.optimizer_steps > 0
    assert control.weight_steps(graph) == 4
    assert len(control.elements) == facts["copies of segments"]


def test_controls_differ_between_seeds_and_from_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_tree(((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 1)), 3, 4)
    monkeypatch.setattr(Branched, "find", lambda self, trainer, segments: Chosen(found))
    method = Branched(BranchedParams(granularity="block", random_tree=True))
    drawn = set()
    for seed in range(6):
        trainer = three_tasks(tmp_path / str(seed), steps=1, seed=seed)
        method.run(trainer)
        drawn.add(trainer.artifacts["tree"].tobytes())
        assert trainer.facts["trees to draw from"]["value"] == 3
        assert not trainer.flags
    assert 1 < len(drawn) <= 3


def test_a_size_that_one_tree_has_is_said_to_be_no_control(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2)  # two tasks: every tree has a size of its own
    Branched(BranchedParams(random_tree=True, budget=1.8)).run(trainer)
    assert trainer.facts["trees to draw from"]["value"] == 1
    assert "no other tree has the size of the found one within 5 %: no control of it" in trainer.flags


def test_where_tasks_have_their_own_images_parameters_alone_match(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, steps=2, domains="multi")
    Branched(BranchedParams(random_tree=True, budget=1.8)).run(trainer)
    segments = segments_of(trainer.backbone(), trainer.data, "stage")
    assert size_of(segments, (together(2),) * 4, trainer.data).macs is None
    assert trainer.facts["deviation from the size asked for"]["value"] == 0


def test_controls_stay_in_the_space_of_their_method() -> None:
    segments = segments_of(toy_backbone(), tasks(3), "block")

    def drawn(method: object, tolerance: float = 0.99) -> list[tuple[int, ...]]:
        rng, size = torch.Generator().manual_seed(0), EncoderSize(segments.absolute(2.0, "params"), None)
        counter = trees_of_size(segments, 3, size, tolerance, method.n_copies(3, 4))
        return [tuple(map(len, counter.draw(rng))) for _ in range(400)]

    counts = drawn(LearningToBranch(LearningToBranchParams(n_nodes=2)))
    assert {count[-1] for count in counts} == {3}  # its last level has a node per task
    assert {count[2] for count in counts} == {1, 2}
    counts = drawn(Branched(BranchedParams(variant="third_party_b")))
    assert {count[0] for count in counts} == {1}
    assert {count[1] for count in counts} == {1, 2, 3}
    for method in (Branched(BranchedParams()), Bmtas(BmtasParams())):
        assert {count[0] for count in drawn(method)} == {1, 2, 3}


def test_a_control_resumes(tmp_path: Path) -> None:
    method = Bmtas(BmtasParams(n_cycles=3, arch_share=0.5, random_tree=True))
    whole = three_tasks(tmp_path / "whole")
    wanted = outcome(whole, method.run(whole))
    for stop in (3, 7):
        killed = three_tasks(tmp_path / f"killed-{stop}", checkpoint_steps=1)
        kill_after(killed, stop)
        with pytest.raises(Killed):
            method.run(killed)
        again = three_tasks(tmp_path / f"killed-{stop}")
        assert outcome(again, method.run(again)) == wanted


@pytest.mark.parametrize(
    ("params", "given", "message"),
    [
        (BranchedParams, {"fixed_tree": ((0, 0),) * 4}, "leaves nothing to choose"),
        (BmtasParams, {"branch_init": "search"}, "a random tree has none of"),
        (LearningToBranchParams, {"variant": "libmtl"}, "never becomes a tree"),
    ],
)
def test_what_has_no_control_is_refused(params: type, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(random_tree=True, **given)


def test_plans_of_controls_say_so_and_count_few_tasks_only() -> None:
    spec, backbone = toy_spec(), toy_backbone()
    for method, params, _ in CHOOSING:
        notes = method(params(random_tree=True)).check(spec, backbone, Budget(100))
        assert notes[-1] == "control: a random tree of the size of the one that this finds, within 5 %"
        assert method(params()).check(spec, backbone, Budget(100)) == notes[:-1]
    many = dataclasses.replace(spec, tasks=tuple(dataclasses.replace(spec.tasks[0], name=f"t{n}") for n in range(9)))
    with pytest.raises(UsageError, match=r"up to 8 tasks, .* has 9\. Ask for fewer"):
        Branched(BranchedParams(search="beam", random_tree=True)).check(many, backbone, Budget(10))
    assert size_of(segments_of(backbone, spec, "block"), (apart(2),) * 4, spec).macs is not None


def test_the_shipped_comparison_has_a_control_beside_every_choice() -> None:
    suite = read_suite(find_suite("branching"))
    rows = [row for entry in suite.methods for row in entry.rows()]
    for name, budgets in (("branched", [2.9, 4.2]), ("bmtas", [4.2]), ("learning_to_branch", [4.2])):
        own = [dict(row.params) for row in rows if row.name == name]
        found = [params for params in own if not params["random_tree"]]
        assert [params["budget"] for params in found] == budgets
        assert [{**params, "random_tree": True} for params in found] == [p for p in own if p["random_tree"]]
    assert (suite.budget.steps, len(suite.seeds)) == (200, 5)
