"""The fairness audit: every field has a pair of rows that trips it, and equal rows trip nothing."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from benchmark.plan.cells import plan
from benchmark.plan.suite import Suite
from benchmark.records.record import Record
from benchmark.tables.audit import audit_rows
from benchmark.tables.audit_fields import FIELDS
from benchmark.train.cell import RunSettings, run_cell
from tests.unit.made_records import entry, make_failure, make_record

GONE = object()


def change(record: Record, path: str, value: object) -> Record:
    """The record with the value at a dotted path replaced, or removed."""
    first, *rest = path.split(".")
    part = copy.deepcopy(getattr(record, first))
    if rest:
        inner = part
        for name in rest[:-1]:
            inner = inner.setdefault(name, {})
        if value is GONE:
            del inner[rest[-1]]
        else:
            inner[rest[-1]] = value
    else:
        part = {} if value is GONE else value
    return dataclasses.replace(record, **{first: part})


def row(method: str, seeds=(0, 1, 2), **keywords) -> list[Record]:
    return [make_record(method, seed, **keywords) for seed in seeds]


def audit(*groups):
    labels = [group[0].cell["method"]["name"] for group in groups]
    return audit_rows(labels, groups)


def finding(found, name):
    matches = [one for one in found.findings if one.field == name]
    assert len(matches) == 1, (name, found.findings)
    return matches[0]


# One change per field, in one row of three.
CHANGES = {
    "data": ("cell.data.version", "2"),
    "data hash": ("versions.data_hash", "e" * 32),
    "protocol": ("cell.data.protocol", "adashare"),
    "tasks": ("cell.data.tasks", ["depth", "semseg"]),
    "task weights": ("cell.data.task_weights", {"semseg": 1.0, "depth": 2.0}),
    "roles": ("roles.select", "other"),
    "n_evaluated": ("n_evaluated.depth", 96),
    "backbone": ("cell.backbone.in_chans", 1),
    "weights": ("cell.backbone.weights", "pretrained"),
    "initial weights": ("versions.weights_hash", "e" * 64),
    "output stride": ("cell.backbone.output_stride", 8),
    "head": ("cell.head", {"dense": "other"}),
    "dropout": ("cell.backbone.drop_path", 0.1),
    "input size": ("audit.input_size", [64, 64]),
    "normalisation": ("audit.normalisation.bgr", True),
    "augmentation": ("cell.recipe.augmentation", ["flip"]),
    "extra data": ("audit.extra_data", "coco"),
    "selection": ("cell.selection.arch_fraction", 0.5),
    "epoch rule": ("cell.selection.rule", "best-on-select"),
    "evaluations": ("cell.selection.evaluations", 50),
    "recipe": ("cell.recipe.name", "published"),
    "optimizer": ("cell.recipe.optimizer.name", "adam"),
    "schedule": ("cell.recipe.schedule.name", "poly"),
    "steps": ("cell.budget.cycles", 10),
    "batch size": ("cell.recipe.batch_size", 32),
    "precision": ("cell.recipe.precision", "amp-bf16"),
    "batch norm": ("audit.batch_norm", "shared"),
    "tuning trials": ("audit.tuning_trials", 20),
    "draws": ("audit.draws", 8),
    "loss weights": ("cell.method.params", {"sparsity_weight": 0.05}),
    "balancing": ("cell.recipe.balancing.name", "uncertainty"),
    "loaders": ("audit.loaders", "per task"),
    "classes averaged": ("metrics.semseg.miou.detail.classes", [0, 1, 2]),
    "search steps": ("cost.search.optimizer_steps", 7),
    "images in search": ("audit.search_roles", "fit"),
    "fidelity": ("audit.fidelity", ["recalled"]),
    "data tier": ("audit.tier", "report only"),
    "determinism": ("environment.determinism.algorithms", False),
    "device": ("environment.device", "GPU"),
    "machine": ("environment.cpu", "another processor"),
    "training code": ("versions.training_hash", "e" * 64),
    "program": ("versions.method_hash", "e" * 64),
    "torch": ("versions.torch", "9.9"),
    "timm": ("versions.timm", "9.9"),
}
RED = {
    *("data", "data hash", "protocol", "tasks", "task weights", "roles", "n_evaluated", "backbone", "weights"),
    *("initial weights", "output stride", "head", "dropout", "input size", "normalisation", "augmentation"),
    *("extra data", "selection", "epoch rule", "evaluations", "recipe", "optimizer", "schedule", "steps", "batch size"),
    *("precision", "batch norm", "draws", "program"),
}
PARAMS = {field.name: field for field in FIELDS}


def test_equal_rows_have_no_findings():
    found = audit(row("a", reference=True), row("b", shared=True), row("c"))
    assert found.findings == ()
    assert found.banners == ()
    assert found.red == frozenset()
    assert found.n_equal == len(FIELDS) + 2  # weight_steps, seeds
    for text in ("data", "task weights", "weight_steps 100", "draws 1", "tuning trials 1", "seeds 0, 1, 2"):
        assert text in found.equal
    assert "batch norm per_sub_expression" in found.equal


def test_a_row_trained_by_its_own_recipe_is_red():
    own = [change(record, "audit.recipe", "published") for record in row("b")]
    suite = [change(record, "audit.recipe", "suite") for record in row("c")]
    found = finding(audit(row("a"), own, suite), "recipe")
    assert found.rule == "red"
    assert "the method's own" in found.text


def test_every_field_is_tried():
    assert set(CHANGES) == set(PARAMS)


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_that_differs_stands_out(name):
    path, value = CHANGES[name]
    groups = [row("a"), row("b"), row("c")]
    if name == "images in search":
        groups[2] = row("c", search_steps=10)
    groups[2] = [change(record, path, value) for record in groups[2]]
    if name == "program":  # belongs to the method: what counts is that the seeds of a row agree
        groups[2][0] = make_record("c", 0)
    one = finding(audit(*groups), name)
    assert one.rule == ("red" if name in RED else "amber")
    assert one.rows == (2,)
    assert "c: " in one.text
    assert audit(*groups).red == (frozenset({2}) if name in RED else frozenset())


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"program", "initial weights", "classes averaged"}))
def test_seeds_of_one_row_that_differ_stand_out(name):
    path, value = CHANGES[name]
    odd = row("c", search_steps=10) if name == "images in search" else row("c")
    odd[1] = change(odd[1], path, value)
    one = finding(audit(row("a"), row("b"), odd), name)
    assert one.rows == (2,)
    assert " and " in one.text or name == "images in search"


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"loss weights", "classes averaged", "images in search"}))
def test_unknown_counts_as_different(name):
    path, _ = CHANGES[name]
    if path.startswith(("roles.", "n_evaluated.", "metrics.")):
        path = path.split(".")[0]
    removed = path.rsplit(".", 1)[0] if path in ("cell.recipe.name", "audit.normalisation.bgr") else path
    if removed.endswith(
        (".cycles", ".arch_fraction", ".algorithms", ".balancing.name", ".optimizer.name", ".schedule.name")
    ):
        removed = removed.rsplit(".", 1)[0]
    odd = [change(record, removed, GONE if name != "n_evaluated" else None) for record in row("c")]
    one = finding(audit(row("a"), row("b"), odd), name)
    assert one.rows == (2,)
    assert "unknown" in one.text


def test_unknown_in_every_row_is_equal_to_nothing():
    groups = [[change(record, "audit.draws", GONE) for record in row(name)] for name in "ab"]
    groups = [[change(record, "audit.loaders", GONE) for record in group] for group in groups]
    found = audit(*groups)
    assert [(one.field, one.rule, one.text) for one in found.findings] == [
        ("unknown for all rows", "red", "draws"),
        ("unknown for all rows", "amber", "loaders"),
    ]
    assert found.red == {0, 1}


def test_one_row_alone_is_audited_for_itself():
    assert audit(row("a")).findings == ()
    mixed = [change(record, "versions.data_hash", str(record.cell["seed"]) * 32) for record in row("a")]
    assert audit(mixed).red == {0}


# which rows stand out


def odd(name, value, **keywords):
    return [change(record, "audit.draws", value) for record in row(name, **keywords)]


def test_the_minority_stands_out():
    found = audit(odd("a", 5), odd("b", 1, shared=True), odd("c", 5))
    assert finding(found, "draws").rows == (1,)
    assert finding(found, "draws").text == "5; b: 1"


def test_between_equals_the_reference_decides():
    assert audit(odd("a", 5), odd("b", 1, shared=True)).red == {0}
    assert audit(odd("a", 5, reference=True), odd("b", 1, shared=True)).red == {0}
    assert audit(odd("a", 5, reference=True), odd("b", 1)).red == {1}


def test_without_a_reference_all_stand_out():
    found = audit(odd("a", 5), odd("b", 1))
    assert found.red == {0, 1}
    assert finding(found, "draws").text == "a: 5; b: 1"


def test_rows_with_one_value_are_named_together():
    found = audit(odd("a", 1), odd("b", 1), odd("c", 1), odd("d", 2), odd("e", 2))
    assert finding(found, "draws").text == "1; d, e: 2"


def test_rows_with_other_numbers_of_tuning_trials_are_amber():
    few = [change(record, "audit.tuning_trials", 5) for record in row("b")]
    many = [[change(record, "audit.tuning_trials", 20) for record in row(name)] for name in "ac"]
    found = audit(many[0], few, many[1])
    assert found.red == frozenset()
    assert (finding(found, "tuning trials").rule, finding(found, "tuning trials").text) == ("amber", "20; b: 5")


def test_a_row_that_reports_the_seed_of_its_tuning_is_red():
    tuned = {"seed": 2, "single_task": {"depth": 1.0}}
    found = audit(row("a"), [change(record, "cell.tuned", tuned) for record in row("b")])
    assert found.red == {1}
    assert finding(found, "tuned on").text == "a seed that is reported: b"


def test_a_reinit_twin_is_known_by_what_no_tuning_chose():
    rows = [
        [
            change(record, "audit.tuning", {"tried": 5, "chosen": {"rate": rate}, "edges": [], "scores": []})
            for record in row("search", params={"reinit": reinit, "rate": rate}, weight_steps=steps)
        ]
        for reinit, rate, steps in ((False, 0.1, 200), (True, 0.3, 100))
    ]
    assert finding(audit_rows(["search", "twin"], rows), "weight_steps").rule == "amber"


def test_the_worked_example_of_the_docstring():
    """a and b hold one value at both seeds, c another one at its second seed; each scope flags c in its own words."""

    def texts(path, usual, odd):
        groups = [[change(record, path, usual) for record in row(name, seeds=(0, 1))] for name in "abc"]
        groups[2][1] = change(groups[2][1], path, odd)
        return {one.field: one.text for one in audit(*groups).findings}

    assert texts("audit.tuning_trials", 5, 7) == {"tuning trials": "5; c: 5 and 7"}
    assert texts("versions.weights_hash", "5", "7") == {"initial weights": "as the others; c: 7 at seed 1"}
    training = "t" * 64
    assert texts("versions.method_hash", "5", "7") == {"program": f"c: {training}, 5 and {training}, 7"}


def test_red_comes_before_amber():
    groups = [row("a"), row("b"), row("c", search_steps=10)]
    groups[2] = [change(record, "audit.draws", 8) for record in groups[2]]
    rules = [one.rule for one in audit(*groups).findings]
    assert rules == sorted(rules, reverse=True)
    assert rules[0] == "red"


def test_initial_weights_differ_between_seeds_but_not_between_rows_of_a_seed():
    assert audit(row("a"), row("b")).findings == ()
    other = row("b")
    other[1] = change(other[1], "versions.weights_hash", "e" * 64)
    one = finding(audit(row("a", shared=True), other), "initial weights")
    assert one.rows == (1,)
    assert one.text == "as the others; b: eeeeeeee at seed 1"


def test_initial_weights_of_rows_with_other_seeds_are_compared_where_they_meet():
    others = [field.field for field in audit(row("a"), row("b"), row("c", seeds=(2, 3))).findings]
    assert others == ["seeds"]


def test_methods_have_their_own_code():
    assert audit(row("a"), row("b")).findings == ()  # their method hashes differ


def test_classes_that_predictions_bring_in_are_amber():
    def with_classes(name, classes):
        records = []
        for record in row(name):
            scores = {"miou": {**entry("miou", 40.0), "detail": {"classes": classes}}}
            records.append(dataclasses.replace(record, metrics={"semseg": scores}))
        return records

    assert audit(with_classes("a", [0, 1]), with_classes("b", [0, 1])).findings == ()
    found = audit(with_classes("a", [0, 1]), with_classes("b", [0, 1]), with_classes("c", [0, 1, 2]))
    assert finding(found, "classes averaged").text == "semseg miou=0, 1; c: semseg miou=0, 1, 2"


def test_records_that_are_not_done_hold_nothing_to_compare():
    found = audit(row("a"), [*row("b", seeds=(0, 1)), make_failure("b", 2)], [make_failure("c", 0)])
    assert found.findings == ()
    assert audit([make_failure("c", 0)]) == audit_rows(["c"], [[make_failure("c", 0)]])
    assert audit([make_failure("c", 0)]).equal == ()


# seeds, selection, development


def test_other_seeds_are_red():
    found = audit(row("a"), row("b"), row("c", seeds=(0, 1)))
    assert finding(found, "seeds").rows == (2,)
    assert finding(found, "seeds").text == "0, 1, 2; c: 0, 1"
    failed = [*row("c", seeds=(0, 1)), make_failure("c", 2)]
    assert audit(row("a"), row("b"), failed).red == frozenset()  # tried, and failed: a result


def test_selection_on_report_is_red_even_where_all_did_it():
    groups = [row(name, selection={"select_on": "test"}) for name in "ab"]
    found = audit(*groups)
    assert found.red == {0, 1}
    assert finding(found, "selected on").text == "the report role: a, b"
    assert audit(*(row(name, selection={"select_on": "select"}) for name in "ab")).red == frozenset()


def test_defaults_chosen_here_are_said_even_where_all_were():
    groups = [row(name, audit={"developed_here": True}) for name in "ab"]
    one = finding(audit(*groups), "developed here")
    assert (one.rule, one.rows, one.text) == ("amber", (0, 1), "a, b")
    one = finding(audit(row("a"), [change(record, "audit.developed_here", GONE) for record in row("b")]), one.field)
    assert (one.rows, one.text) == ((1,), "b (unknown)")


# weight_steps (4a)


def test_weights_with_more_updates_are_red_alone():
    found = audit(row("a", shared=True), row("warm", weight_steps=200))
    one = finding(found, "weight_steps")
    assert (one.rule, one.rows) == ("red", (1,))
    assert one.text == "100; warm: 200 (no reinit twin, no reference row with as many)"


def test_fewer_updates_than_the_budget_are_red():
    one = finding(audit(row("a"), row("b"), row("c", weight_steps=50)), "weight_steps")
    assert (one.rule, one.rows, one.text) == ("red", (2,), "100; c: 50 (fewer than the budget)")


def test_a_reinit_twin_lifts_a_warm_start_to_amber():
    warm = row("warm", weight_steps=200, params={"reinit": False, "x": 1})
    twin = row("warm", params={"reinit": True, "x": 1})
    one = finding(audit_rows(["a", "warm", "twin"], [row("a", shared=True), warm, twin]), "weight_steps")
    assert (one.rule, one.rows, one.text) == ("amber", (1,), "100; warm: 200 (beside its reinit twin twin)")


@pytest.mark.parametrize(
    ("method", "params"),
    [("warm", {"reinit": True, "x": 2}), ("warm", {"reinit": False, "x": 1}), ("other", {"reinit": True, "x": 1})],
)
def test_what_is_no_twin_lifts_nothing(method, params):
    warm = row("warm", weight_steps=200, params={"reinit": False, "x": 1})
    other = row(method, params=params, seeds=(0, 1, 2))
    assert 1 in audit_rows(["a", "warm", "b"], [row("a", shared=True), warm, other]).red


def test_a_reference_row_with_as_many_updates_lifts_both_to_amber():
    warm, long = row("warm", weight_steps=200, search_steps=100), row("long", weight_steps=200, shared=True)
    found = audit(row("a", shared=True), warm, long)
    one = finding(found, "weight_steps")
    assert (one.rule, one.rows) == ("amber", (1, 2))
    assert "warm: 200 (as many as long)" in one.text
    assert audit(row("a", shared=True), warm, row("long", weight_steps=200)).red == {1, 2}  # not the reference method
    assert 1 in audit(row("a", shared=True), warm, row("long", weight_steps=150, shared=True)).red


def test_a_longer_reference_is_a_control_only_of_a_search_as_long():
    search = row("search", search_steps=200)  # 300 in all
    assert audit(row("a", shared=True), search, row("long", weight_steps=300, shared=True)).red == frozenset()
    assert audit(row("a", shared=True), search, row("long", weight_steps=400, shared=True)).red == {2}
    one = finding(audit(row("a", shared=True), row("long", weight_steps=300, shared=True)), "weight_steps")
    assert one.text == "100; long: 300 (longer than any search with its final training)"


def test_unknown_and_mixed_weight_steps_are_red():
    lost = [change(record, "cost.weight_steps", GONE) for record in row("c")]
    assert finding(audit(row("a"), row("b"), lost), "weight_steps").text == "100; c: unknown"
    mixed = [*row("c", seeds=(0, 1)), *row("c", seeds=(2,), weight_steps=200)]
    assert finding(audit(row("a"), row("b"), mixed), "weight_steps").text == "100; c: 100 and 200"


# controls (4c, 4d)


def test_a_search_without_controls_has_a_banner():
    (banner,) = audit(row("a", shared=True), row("search", search_steps=250)).banners
    assert banner == (
        "no equal-cost control for the search of search: missing the reference row at the largest total budget "
        "(3.5 times its steps) and a random architecture"
    )


def test_each_control_is_missed_on_its_own():
    reference, search = row("a", shared=True), row("search", search_steps=200)
    long = row("long", weight_steps=300, shared=True)
    random = row("random", audit={"random_architecture": True})
    assert audit(reference, search, long, random).banners == ()
    (banner,) = audit(reference, search, long).banners
    assert banner.endswith("missing a random architecture")
    (banner,) = audit(reference, search, random).banners
    assert banner.endswith("missing the reference row at the largest total budget (3.0 times its steps)")
    (banner,) = audit(reference, search, row("long", weight_steps=250, shared=True), random).banners
    assert "largest total budget" in banner  # 250 of 300 is more than 5 % too little
    assert audit(reference, row("free")).banners == ()


def test_what_chooses_no_architecture_needs_no_random_one():
    """Merging spends the training of single-task networks, but nothing in it can be drawn at random."""
    reference, spends = row("a", shared=True), row("spends", search_steps=200, audit={"search_space": ""})
    (banner,) = audit(reference, spends).banners
    assert banner == (
        "no equal-cost control for the cost before the final training of spends: missing the reference row at the "
        "largest total budget (3.0 times its steps)"
    )
    long = row("long", weight_steps=300, shared=True)
    assert audit(reference, spends, long).banners == ()
    banners = audit(reference, spends, row("search", search_steps=200)).banners
    assert [banner.rpartition(" and ")[2] for banner in banners if "search of search" in banner] == [
        "a random architecture"
    ]
    assert len(banners) == 2


def test_a_random_architecture_of_another_size_is_amber():
    def sized(name, total, joint, **keywords):
        return row(name, size={"total": total}, compute={"macs_joint": joint, "macs_sum": 2 * joint}, **keywords)

    search = sized("search", 1000, 5000, search_steps=200)
    long = row("long", weight_steps=300, shared=True)
    near = sized("near", 1020, 5200, audit={"random_architecture": True})
    found = audit(row("a", shared=True), search, long, near)
    assert "near 4.0 % from the size of search" in found.equal
    far = sized("far", 1020, 4500, audit={"random_architecture": True})
    one = finding(audit(row("a", shared=True), search, long, far), "random architecture")
    assert (one.rule, one.rows, one.text) == ("amber", (3,), "far 10.0 % from the size of search")


def test_a_random_architecture_controls_what_is_drawn_from_its_own_space():
    """Random masks of weights say nothing of a search for trees, and their size is not to be that of its tree."""

    def sized(name, total, space, **keywords):
        audit = {"search_space": space, **keywords.pop("audit", {})}
        return row(name, size={"total": total}, compute={"macs_joint": 5000}, audit=audit, **keywords)

    reference, long = row("a", shared=True), row("long", weight_steps=300, shared=True)
    search = sized("search", 1000, "trees", search_steps=200)
    solved = sized("masks", 100, "masks")
    masks = sized("masks", 100, "masks", audit={"random_architecture": True})
    found = audit(reference, long, search, solved, masks)
    assert [one for one in found.findings if one.field == "random architecture"] == []
    assert "masks 0.0 % from the size of masks" in found.equal
    assert found.banners == ("no equal-cost control for the search of search: missing a random architecture",)
    tree = sized("tree", 1000, "trees", audit={"random_architecture": True})
    controlled = audit(reference, long, search, solved, masks, tree)
    assert controlled.banners == ()
    assert "tree 0.0 % from the size of search" in controlled.equal


def test_a_drawn_row_is_no_search():
    drawn = row("random", search_steps=200, audit={"random_architecture": True})
    assert audit(row("a", shared=True), drawn).banners == ()


# what a run writes


@pytest.mark.usefixtures("toy_data")
def test_records_of_a_run_leave_no_field_unknown(tmp_path):
    longer = {"name": "hard_sharing", "params": {"steps_factor": 2.0}}
    suite = Suite.model_validate(
        {
            "name": "tiny",
            "data": ["toy"],
            "backbones": ["test_resnet"],
            "methods": ["single_task", "hard_sharing", longer],
            "seeds": [0],
            "budget": {"steps": 2, "cycles": 2},
            "recipe": {"batch_size": 8},
        }
    )
    stl, shared, long = (run_cell(cell, RunSettings(tmp_path)) for cell in plan(suite))
    assert [one.audit["reference"] for one in (stl, shared, long)] == ["single_task", "shared", "shared"]
    assert [one.audit["non_default_params"] for one in (stl, shared, long)] == [{}, {}, {"steps_factor": 2.0}]
    found = audit([stl], [shared])
    assert {one.field for one in found.findings} <= {"fidelity"}
    assert found.banners == ()
    assert not any("unknown" in one.text for one in found.findings)
    assert finding(audit([stl], [shared], [long]), "weight_steps").rows == (2,)


@pytest.mark.parametrize("name", ["training_hash", "method_hash", "data_hash"])
def test_a_mean_over_two_programs_or_two_data_contents_is_red(name):
    mixed = row("b")
    mixed[1] = change(mixed[1], f"versions.{name}", "e" * 64)
    assert audit(row("a"), mixed, row("c")).red == {1}


def test_a_search_that_stayed_is_amber_and_red_on_a_leaderboard():
    moved = {"search_moved": {"gates": {"largest": 0.4, "mean": 0.1}}}
    one_seed = [*row("c", seeds=(0, 1), audit=moved), *row("c", seeds=(2,), audit=stayed_by(0.02))]
    groups = [row("a", shared=True), row("b", audit=moved), one_seed, row("d", audit=stayed_by(None))]
    found = finding(audit(*groups), "search did not move")
    assert (found.rule, found.rows) == ("amber", (2, 3))
    assert found.text == "c: gates by 0.02 at most; d: gates by no finite number"
    labels = [group[0].method for group in groups]
    assert audit_rows(labels, groups, is_leaderboard=True).red >= {2, 3}
    assert not audit_rows(labels[:2], groups[:2], is_leaderboard=True).red


def stayed_by(largest):
    return {"search_moved": {"gates": {"largest": largest, "mean": largest}}}
