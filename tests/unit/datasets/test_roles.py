"""Roles: a sample that trains and is reported on, or a split that moves with the machine, makes a table worthless."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contracts import DatasetSpec, InputData, MultiTaskDataset, Sample, Split, TaskSpec
from datasets.errors import UsageError
from datasets.registry import load
from datasets.roles import ARCH_PREFIX, HOLD_OUT_PREFIX, hold_out, role_hash, role_indices

SPEC = DatasetSpec(
    name="toy",
    layout="memory",
    version="v1",
    protocol="standard",
    domains="single",
    tasks=(TaskSpec("digit", "class", 2, ("accuracy",)),),
    splits={"train": 10, "test": 4},
    native_size=(4, 4),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    licence="none",
    home="none",
    tier="verified on twins",
)


class Listed(InputData):
    """Ids and units without images."""

    def __init__(self, units: Sequence[str], parts: dict[str, np.ndarray] | None = None) -> None:
        self.ids = [f"{unit}/{position}" for position, unit in enumerate(units)]
        self.units = list(units)
        self.parts = parts

    def sample(self, row: int) -> Sample:
        raise NotImplementedError

    def content_hash(self) -> str:
        raise NotImplementedError


def split_of(split: Split, data: InputData) -> MultiTaskDataset:
    return MultiTaskDataset(SPEC, split, {"image": data})


def test_v2_the_hold_out_and_then_arch_of_the_rest() -> None:
    units = [f"s{i}" for i in range(10)]
    select = hold_out("toy", units, 0.2, HOLD_OUT_PREFIX)
    assert [units[i] for i in select] == ["s4", "s7"]
    rest = [unit for unit in units if unit not in ("s4", "s7")]
    assert [rest[i] for i in hold_out("toy", rest, 0.2, ARCH_PREFIX)] == ["s8", "s9"]


def test_v2_through_the_roles() -> None:
    train, test = Listed([f"s{i}" for i in range(10)]), Listed(["a", "b"])
    roles = role_indices(split_of("train", train), None, split_of("test", test), hold_out_fraction=0.2)["image"]
    assert {role: (part.split, part.indices.tolist()) for role, part in roles.items()} == {
        "fit": ("train", [0, 1, 2, 3, 5, 6]),
        "arch": ("train", [8, 9]),
        "select": ("train", [4, 7]),
        "report": ("test", [0, 1]),
    }


def test_v3_a_data_set_with_a_val_split_selects_on_it() -> None:
    train, val, test = (split_of(s, Listed([f"{s}{i}" for i in range(10)])) for s in ("train", "val", "test"))
    roles = role_indices(train, val, test)["image"]
    assert roles["select"].split == "val"
    assert roles["select"].indices.tolist() == list(range(10))
    assert len(roles["arch"].indices) == 2
    assert sorted([*roles["fit"].indices, *roles["arch"].indices]) == list(range(10))


@pytest.mark.parametrize("name", ["multi_mnist", "mnist_two_domains"])
def test_v3_roles_of_composed_data_share_no_source_digit(name: str) -> None:
    splits = {split: load(name, None, split) for split in ("train", "val", "test")}
    roles = role_indices(splits["train"], splits["val"], splits["test"])
    sources: dict[tuple[str, str], set[int]] = {}
    for name_of_input, parts in roles.items():
        for role, part in parts.items():
            data = splits[part.split].inputs[name_of_input]
            assert data.sources is not None
            sources[name_of_input, role] = set(data.sources[part.indices].flatten().tolist())
    keys = list(sources)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            assert not sources[first] & sources[second], (first, second)
    assert len(set().union(*sources.values())) == 5000


def test_v3_arch_cut_by_canvas_would_share_nearly_every_digit() -> None:
    data = load("multi_mnist", None, "train").inputs["image"]
    assert data.sources is not None
    arch = hold_out("multi_mnist", data.units, 0.2, ARCH_PREFIX)
    fit = np.setdiff1d(np.arange(len(data)), arch)
    of_arch, of_fit = set(data.sources[arch].flatten().tolist()), set(data.sources[fit].flatten().tolist())
    assert len(of_arch & of_fit) / len(of_arch) > 0.99


def test_a_paper_that_chose_on_test_is_re_enacted_whole() -> None:
    """All of train trains, the test images choose: what papers without a validation set did."""
    for val in (None, split_of("val", Listed(["v"] * 3))):
        train, test = Listed([f"s{i}" for i in range(10)]), Listed(["a", "b"])
        roles = role_indices(split_of("train", train), val, split_of("test", test), select_on="test")["image"]
        assert (roles["select"].split, roles["select"].indices.tolist()) == ("test", [0, 1])
        assert sorted([*roles["fit"].indices, *roles["arch"].indices]) == list(range(10))


def test_whole_units_stay_together_until_the_fraction_is_reached() -> None:
    units = [f"scene{i // 5}" for i in range(50)]
    held = hold_out("toy", units, 0.12, HOLD_OUT_PREFIX)
    assert len(held) == 10  # 6 images are asked for, scenes hold 5
    assert len({units[i] for i in held}) == 2


def test_the_fraction_is_exact() -> None:
    assert 0.07 * 100 > 7  # in floats, which would hold out an eighth
    assert len(hold_out("toy", [str(i) for i in range(100)], 0.07, HOLD_OUT_PREFIX)) == 7


def test_strata_each_give_their_share() -> None:
    """Forty of class a, twenty of b: four and two, and those that each class alone would give."""
    strata = ["a" if index % 3 else "b" for index in range(60)]
    units = [f"image{index}" for index in range(60)]
    held = hold_out("toy", units, 0.1, HOLD_OUT_PREFIX, strata)
    assert held.tolist() == sorted(held.tolist())
    assert [strata[index] for index in held].count("a") == 4
    assert [strata[index] for index in held].count("b") == 2
    members = [index for index in range(60) if strata[index] == "b"]
    alone = hold_out("toy", [units[index] for index in members], 0.1, HOLD_OUT_PREFIX)
    assert {members[position] for position in alone} <= set(held.tolist())
    assert set(held.tolist()) != set(hold_out("toy", units, 0.1, HOLD_OUT_PREFIX).tolist())
    with pytest.raises(UsageError, match=r"Holding out 10% of toy, 1 samples in 1 units, leaves none"):
        hold_out("toy", units, 0.1, HOLD_OUT_PREFIX, ["rare", *strata[1:]])


def test_strata_hold_for_arch_too() -> None:
    train = Listed([f"image{index}" for index in range(100)])
    train.strata = ["a" if index < 50 else "b" for index in range(100)]
    roles = role_indices(split_of("train", train), None, split_of("test", Listed(["x"])))["image"]
    counts = {role: sum(index < 50 for index in roles[role].indices) for role in ("select", "arch", "fit")}
    assert counts == {"select": 5, "arch": 9, "fit": 36}
    assert {role: len(roles[role].indices) for role in counts} == {"select": 10, "arch": 18, "fit": 72}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=30, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(units: list[int], shuffler: random.Random) -> None:
    names = [f"u{unit}" for unit in units]
    if len(set(names)) < 3:
        return
    shuffled = list(names)
    shuffler.shuffle(shuffled)
    try:
        held = hold_out("toy", names, 0.1, HOLD_OUT_PREFIX)
    except UsageError:  # one unit holds nearly all samples, in whatever order
        with pytest.raises(UsageError):
            hold_out("toy", shuffled, 0.1, HOLD_OUT_PREFIX)
        return
    again = hold_out("toy", shuffled, 0.1, HOLD_OUT_PREFIX)
    assert {names[i] for i in held} == {shuffled[i] for i in again}
    assert not {names[i] for i in held} & {names[i] for i in set(range(len(names))) - set(held.tolist())}
    assert held.tolist() == sorted(held.tolist())


def test_data_sets_and_prefixes_have_their_own_order() -> None:
    units = [f"s{i}" for i in range(50)]
    chosen = {(d, p): tuple(hold_out(d, units, 0.2, p)) for d in ("a", "b") for p in (HOLD_OUT_PREFIX, ARCH_PREFIX)}
    assert len(set(chosen.values())) == 4


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UsageError, match="3 samples in 1 units, leaves none"):
        hold_out("toy", ["one"] * 3, 0.1, HOLD_OUT_PREFIX)


def test_fixed_parts_refuse_another_fraction_and_need_a_val_split() -> None:
    parts = {"fit": np.arange(8), "arch": np.arange(8, 10)}
    train, test = split_of("train", Listed(["x"] * 10, parts)), split_of("test", Listed(["t"]))
    val = split_of("val", Listed(["v"]))
    roles = role_indices(train, val, test)["image"]
    assert roles["arch"].indices.tolist() == [8, 9]
    with pytest.raises(UsageError, match=r"arch_fraction must be 0\.2, got 0\.5"):
        role_indices(train, val, test, arch_fraction=0.5)
    with pytest.raises(UsageError, match="toy is composed; a val split must come with it"):
        role_indices(train, None, test)


def test_inputs_of_multi_domain_data_hold_out_the_same_units() -> None:
    spec = dataclasses.replace(
        SPEC, domains="multi", tasks=tuple(dataclasses.replace(SPEC.tasks[0], name=n) for n in "ab")
    )
    units = [f"scene{i}" for i in range(30)]
    train = MultiTaskDataset(spec, "train", {"a": Listed(units), "b": Listed(units[::-1])})
    test = MultiTaskDataset(spec, "test", {"a": Listed(["t"]), "b": Listed(["t"])})
    roles = role_indices(train, None, test)
    held = {n: {train.inputs[n].units[i] for i in roles[n]["select"].indices} for n in "ab"}
    assert held["a"] == held["b"]


def test_role_hash_is_of_the_set() -> None:
    assert role_hash(["a", "b"]) == role_hash(["b", "a"]) != role_hash(["a", "c"])
    # printf "a\nb" | sha256sum
    assert role_hash(["a", "b"]) == "7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    with pytest.raises(UsageError, match="1 are not, the first is 'a'"):
        role_hash(["a", "a"])
