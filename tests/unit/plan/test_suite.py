"""A suite that is read wrongly trains the wrong thing for hours; a fault must be one line before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from benchmark.plan.cells import method_params, weights_tag
from benchmark.plan.suite import Suite
from benchmark.plan.suite_file import find_suite, read_suite, suite_names
from datasets.errors import UsageError
from datasets.images.augmentation import read_steps
from datasets.registry import read_options
from datasets.settings import Checked
from methods.parameters import Later, MethodParams
from methods.registry import get_method

GOOD = "name: q\ndata: [a]\nbackbones: [b]\nmethods: [c]\n"


def read(tmp_path: Path, text: str, **options: object) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return read_suite(path, **options)


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_valid_and_carry_their_own_name(name: str) -> None:
    suite = read_suite(find_suite(name))
    assert suite.name == name
    assert suite.description


def test_cells_are_the_whole_product_in_a_fixed_order(tmp_path: Path) -> None:
    suite = read(tmp_path, GOOD.replace("[c]", "[c, d]") + "seeds: [3, 1]\n")
    assert [(cell.seed, cell.method.name) for cell in suite.cells()] == [(3, "c"), (3, "d"), (1, "c"), (1, "d")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "recipe: {optimizer: {lrr: 1}}", r"line 5: unknown key 'recipe.optimizer.lrr'. Nearest: lr"),
        (GOOD + "recipe:\n  batch_size: 0", r"line 6: recipe.batch_size: .* greater than or equal to 1 \(given: 0\)"),
        (GOOD + "recipe: {clip_norm: .nan}", r"recipe.clip_norm: .*finite"),
        (GOOD + "seeds: []", r"line 5: seeds: .*at least 1 item"),
        (GOOD + "sedes: [1]", r"line 5: unknown key 'sedes'. Nearest: seeds"),
        (GOOD + "seeds: [1.5]", r"seeds.0"),
        (GOOD + "name: r", r"line 5: key 'name' stands twice"),
        (GOOD.replace("data: [a]", "data: [{dataset: a, tasks: [x, x]}]"), r"tasks must be .* different"),
        (GOOD + "recipe: &r [*r]", r"a node contains itself"),
        ("[1, 2]", "a suite is a mapping of keys, not list"),
        ("", "a suite is a mapping of keys, not NoneType"),
        ("a: [", "line 1: not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", r"not valid YAML \(could not determine a constructor"),
        ("name: q\n", "data: Field required"),
    ],
)
def test_faults_are_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "suite.yaml" in str(caught.value)


def test_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a suite has at most"):
        read(tmp_path, "#" * 2_000_000)
    with pytest.raises(UsageError, match="more than 1000 brackets"):
        read(tmp_path, "[" * 50_000)
    with pytest.raises(UsageError, match="nested too deeply"):
        read(tmp_path, "- " * 5_000)
    (tmp_path / "suite.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_suite(tmp_path / "suite.yaml")


def test_settings_reach_sections_and_method_parameters(tmp_path: Path) -> None:
    suite = read(
        tmp_path, GOOD, settings=["recipe.optimizer.lr=0.5", "budget.steps=7", "c.search.update=joint", "c.n=2"]
    )
    assert suite.recipe.optimizer.lr == 0.5
    assert suite.budget.steps == 7
    assert suite.methods[0].params == {"search": {"update": "joint"}, "n": 2}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe", "expected section.key=value"),
        ("recipe.lr", "expected section.key=value"),
        ("cc.x=1", "Unknown section of --set 'cc'. Nearest: 'c'"),
        ("recipe.optimizer.lr=[", "not valid YAML"),
        ("recipe.optimizer.rate=1", "unknown key 'recipe.optimizer.rate'"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, GOOD, settings=[setting])


def test_unknown_suites_name_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'quik'. Nearest: 'quick'"):
        find_suite("quik")
    with pytest.raises(UsageError, match="does not exist"):
        find_suite("nowhere/quick.yaml")


def test_a_sweep_is_a_row_of_every_combination(tmp_path: Path) -> None:
    entry = "{name: c, params: {s: {x: 1}}, sweep: {b: [1.0, 2], s.y: [u, null]}}"
    suite = read(tmp_path, GOOD.replace("[c]", f"[{entry}, d]") + "seeds: [0]\n")
    found = [(cell.method.name, cell.method.params) for cell in suite.cells()]
    assert found == [
        ("c", {"s": {"x": 1, "y": "u"}, "b": 1.0}),
        ("c", {"s": {"x": 1, "y": None}, "b": 1.0}),
        ("c", {"s": {"x": 1, "y": "u"}, "b": 2}),
        ("c", {"s": {"x": 1, "y": None}, "b": 2}),
        ("d", {}),
    ]
    assert suite.methods[0].params == {"s": {"x": 1}}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: c, sweep: {b: []}}", r"line 4: methods.0.sweep.b: .*at least 1 item"),
        ("{name: c, sweep: {b: 1.5}}", r"line 4: methods.0.sweep.b: .*valid tuple \(given: 1.5\)"),
        ("{name: c, sweep: {b: [1, 2, 1]}}", r"b lists 1 twice"),
        ("{name: c, params: {b: 1}, sweep: {b: [1, 2]}}", r"b is swept and given in params too"),
        ("{name: c, params: {s: 1}, sweep: {s.b: [1, 2]}}", r"'s' is a value, not a section"),
        ("{name: c, sweep: {s.b: [1], s: [2]}}", r"s is swept and given in params too"),
        (f"{{name: c, sweep: {{a: {list(range(40))}, b: {list(range(40))}}}}}", r"makes 1600 rows of one entry"),
        ("{name: c, swep: {b: [1]}}", r"unknown key 'methods.0.swep'. Nearest: sweep"),
    ],
)
def test_faults_of_a_sweep_are_one_line(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, GOOD.replace("[c]", f"[{entry}]"))
    assert "\n" not in str(caught.value)


def test_what_is_swept_cannot_be_set_too(tmp_path: Path) -> None:
    text = GOOD.replace("[c]", "[{name: c, sweep: {b: [1, 2]}}]")
    with pytest.raises(UsageError, match="b is swept and given in params too"):
        read(tmp_path, text, settings=["c.b=3"])
    assert read(tmp_path, text, settings=["c.a=3"]).methods[0].params == {"a": 3}


def test_a_setting_reaches_every_row_of_its_method(tmp_path: Path) -> None:
    """A control that kept the old weight would be no control. Rows that are equal then stand once."""
    text = GOOD.replace("[c]", "[{name: c, params: {w: 1}}, d, {name: c, params: {w: 1, draw: random}}, c]")
    methods = read(tmp_path, text, settings=["c.w=5"]).methods
    assert [(entry.name, entry.params) for entry in methods] == [
        ("c", {"w": 5}),
        ("d", {}),
        ("c", {"w": 5, "draw": "random"}),
    ]
    balanced = read(tmp_path, text, settings=["c.balancing=dwa"]).methods
    assert [entry.balancing is not None for entry in balanced] == [True, False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe:\n  batch_size: 032", r"line 6: 032 has a leading zero, .*; write 32, or '032' in quotes"),
        ("recipe:\n  batch_size: 089", r"line 6: 089 has a leading zero"),
        ("recipe: {optimizer: {lr: 00.5}}", r"line 5: 00.5 has a leading zero, .*; write 0.5"),
        ("seeds: [010]", r"line 5: 010 has a leading zero"),
        ("budget: {steps: 1:30}", r"line 5: 1:30 is read as 90"),
        ("recipe: {batch_size: yes}", r"line 5: recipe.batch_size: .*truth value"),
        ("seeds: [true, false]", r"line 5: seeds: .*truth value"),
        ("recipe: {optimizer: {betas: [0.9, on]}}", r"recipe.optimizer.betas: .*truth value"),
    ],
)
def test_numbers_that_yaml_reads_otherwise_than_they_look_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, GOOD + text)


@pytest.mark.parametrize("value", ["032", "1:30", "yes"])
def test_numbers_on_the_command_line_are_read_alike(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"leading zero|is read as|truth value"):
        read(tmp_path, GOOD, settings=[f"recipe.batch_size={value}"])


def test_numbers_and_truth_values_that_look_like_what_they_are_stay(tmp_path: Path) -> None:
    text = "description: '010'\nseeds: [0, 1_0]\nrecipe: {optimizer: {lr: 1e-3, weight_decay: 0., nesterov: yes}}\n"
    suite = read(tmp_path, GOOD + text)
    assert suite.seeds == (0, 10)
    assert suite.description == "010"
    assert suite.recipe.optimizer.nesterov is True
    assert (suite.recipe.optimizer.lr, suite.recipe.optimizer.weight_decay) == (0.001, 0.0)


def test_a_truth_value_is_no_number_for_methods_data_and_augmentation() -> None:
    method = get_method("hard_sharing")
    with pytest.raises(UsageError, match=r"steps_factor: .*truth value"):
        method_params(method, "hard_sharing", {"steps_factor": True})
    with pytest.raises(UsageError, match=r"jitter.*truth value"):
        read_options("multi_mnist", {"jitter": True})
    with pytest.raises(UsageError, match=r"rotation.degrees: .*truth value"):
        read_steps([{"name": "rotation", "degrees": True}])


def test_few_aliases_that_multiply_are_refused_with_their_line(tmp_path: Path) -> None:
    """Nine lists of nine references each, eight levels: 43 million nodes, which would take minutes to walk."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    with pytest.raises(UsageError, match=r"line 5: more than 10000 nodes once its aliases"):
        read(tmp_path, bomb)
    merged = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{b: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    with pytest.raises(UsageError, match=r"aliases"):
        read(tmp_path, merged)
    shared = "recipe: {optimizer: &o {lr: 0.1}}\n"
    assert read(tmp_path, GOOD + shared).recipe.optimizer.lr == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "recipe: {balancing: [equal, uncertainty]}",
            r"line 5: recipe.balancing: is one way.*top level of the suite: balancing: \[equal, uncertainty\]",
        ),
        (GOOD.replace("[b]", "[{name: b, pretrained: true}]"), r"'backbones.0.pretrained'.* Known: name, weights, "),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_the_right_one(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_paths_of_a_suite_are_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    backbones = "[b, {name: b, weights: pretrained}, {name: b, weights: net.pth}, {name: b, weights: /x/net.pth}]"
    suite = read(tmp_path, GOOD.replace("[b]", backbones) + "plugins: [mine.py]\n")
    assert [entry.weights for entry in suite.backbones] == [
        "none",
        "pretrained",
        str(tmp_path / "net.pth"),
        "/x/net.pth",
    ]
    assert suite.plugins == (str(tmp_path / "mine.py"),)
    with pytest.raises(UsageError, match=r"net.pth' does not exist; expected none, pretrained, or a path relative"):
        weights_tag(suite.backbones[2].weights)


class Nested(Checked):
    depth: int = 1


class Grown(MethodParams):
    """A method that got two parameters after records were made."""

    rate: float = 0.1
    nested: Nested = Nested()
    centred: Annotated[bool, Later()] = False
    wide: Annotated[Nested, Later()] = Nested()


def test_a_later_parameter_is_part_of_a_cell_only_where_it_is_asked_for() -> None:
    """Else every cell of the method would get another key, and its records would be rows of no table."""
    assert Grown().document() == {"rate": 0.1, "nested": {"depth": 1}}
    assert Grown(centred=True).document() == {"rate": 0.1, "nested": {"depth": 1}, "centred": True}
    assert Grown(wide=Nested(depth=2)).document() == {"rate": 0.1, "nested": {"depth": 1}, "wide": {"depth": 2}}
    assert Grown(rate=0.2).document()["rate"] == 0.2
    assert "center_images" not in get_method("branched").Params().document()
