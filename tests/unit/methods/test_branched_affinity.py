"""Affinities of `branched`: the traps of the specification with their numbers. Source: branched T1 to T10, T27."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import UsageError
from methods.branched import affinity as module
from methods.branched.affinity import affinity, features_of, pairwise_dissimilarity, standard_ranks, with_locations
from methods.branched.branched import probe_batches
from methods.branched.segments import segments_of
from methods.contracts import Role
from tests.numbers import assert_same
from tests.unit.harness import toy_trainer

A = torch.tensor([[1.0, 2, 3, 4], [2, 1, 4, 3], [4, 3, 2, 1], [1, 3, 2, 4]])
B = torch.tensor([[1.0, 2, 3, 4], [1, 2, 4, 3], [1, 4, 2, 3], [4, 3, 2, 1]])
EXPECTED = -13 / 35


def of(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(affinity([(0, 0, first), (1, 0, second)], ["A", "B"], ["x"]).values[0, 0, 1])


def square(features: torch.Tensor) -> np.ndarray:
    full = np.zeros((len(features), len(features)))
    full[np.triu_indices(len(features), 1)] = pairwise_dissimilarity(features, "A", "x")
    return full + full.T


def test_the_fixture_has_the_dissimilarities_and_the_affinity_of_the_specification() -> None:
    np.testing.assert_allclose(pairwise_dissimilarity(A, "A", "x"), [0.4, 2, 0.2, 1.6, 1, 1.8], atol=1e-12)
    np.testing.assert_allclose(pairwise_dissimilarity(B, "B", "x"), [0.2, 0.6, 2, 0.8, 1.8, 1.4], atol=1e-12)
    assert of(A, B) == pytest.approx(EXPECTED, abs=1e-12)


def test_the_naive_readings_give_the_other_numbers_and_are_not_ours() -> None:
    a, b = (pairwise_dissimilarity(x, "A", "x") for x in (A, B))
    n = len(a)
    raw = 1 - 6 * float(((a - b) ** 2).sum()) / (n * (n * n - 1))  # T2: Spearman's formula on raw values
    pearson = scipy.stats.pearsonr(a, b).statistic  # T3
    upper = np.triu_indices(4, 0)
    diagonal = scipy.stats.spearmanr(square(A)[upper], square(B)[upper]).statistic  # T4
    whole = scipy.stats.spearmanr(square(A).ravel(), square(B).ravel()).statistic
    found = [raw, pearson, diagonal, whole]
    assert found == pytest.approx([0.809143, -0.243860, 0.690323, 0.421687], abs=1e-6)
    assert all(abs(of(A, B) - value) > 0.1 for value in found)


def test_the_order_of_images_matters_only_where_it_differs() -> None:
    order = [2, 0, 3, 1]
    assert of(A[order], B[order]) == pytest.approx(EXPECTED, abs=1e-12)
    assert of(A[order], B) == pytest.approx(-0.485714, abs=1e-6)


def test_ties_have_average_ranks() -> None:
    first, second = (standard_ranks(np.array(values, dtype=float)) for values in ([0, 0, 1], [0, 1, 2]))
    assert float(first @ second) == pytest.approx(0.866025, abs=1e-6)
    assert standard_ranks(np.ones(4)) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_affinities_equal_scipys_and_are_symmetric(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features = {(i, d): torch.randn(7, 5 + d, generator=random) for i in range(3) for d in range(2)}
    found = affinity([(i, d, x) for (i, d), x in features.items()], ["a", "b", "c"], ["x", "y"]).values
    upper = np.triu_indices(7, 1)
    for d in range(2):
        rdm = [(1 - np.corrcoef(features[i, d].double().numpy()))[upper] for i in range(3)]
        expected = np.array([[scipy.stats.spearmanr(one, other).statistic for other in rdm] for one in rdm])
        np.testing.assert_allclose(found[d], expected, atol=1e-9)
        assert (found[d] == found[d].T).all()
        assert (np.diag(found[d]) == 1).all()
    same = affinity([(i, 0, features[0, 0]) for i in range(2)], ["a", "b"], ["x"]).values
    np.testing.assert_allclose(same, 1, atol=1e-12)


def test_scaling_an_image_and_permuting_all_features_change_nothing() -> None:
    # Factors that would change the ranks of products that are not normalised.
    scale, shift = torch.tensor([[2.0], [10.0], [0.5], [1.5]]), torch.tensor([[1.0], [-4.0], [0.0], [7.0]])
    columns = [3, 1, 0, 2]
    assert of(A * scale + shift, B) == pytest.approx(EXPECTED, abs=1e-12)
    assert of(A[:, columns], B[:, columns]) == pytest.approx(EXPECTED, abs=1e-12)


def test_pooled_features_would_be_one_number_an_image() -> None:
    maps = A.reshape(4, 1, 2, 2)
    with pytest.raises(UsageError, match=r"'A' at stage 1 are equal for probe image 0 \(4 of 4 images\)"):
        pairwise_dissimilarity(maps.mean((2, 3)), "A", "stage 1")
    assert of(maps.flatten(1), B) == pytest.approx(EXPECTED, abs=1e-12)


@pytest.mark.numerical
def test_products_over_chunks_and_in_float32_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(6, 101, generator=torch.Generator().manual_seed(0)) + 100  # a large common mean
    whole = pairwise_dissimilarity(features, "A", "x")
    np.testing.assert_allclose(whole, (1 - np.corrcoef(features.double()))[np.triu_indices(6, 1)], atol=1e-12)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 6 * 10)
    np.testing.assert_allclose(pairwise_dissimilarity(features, "A", "x"), whole, atol=1e-12)
    np.testing.assert_allclose(pairwise_dissimilarity(features, "A", "x", dtype="float32"), whole, atol=1e-5)


def test_a_constant_location_is_an_error_or_distances_of_one() -> None:
    dead = A.clone()
    dead[2] = 5.0
    with pytest.raises(UsageError, match=r"'A' at stage 3 are equal for probe image 2 .*degenerate: one"):
        pairwise_dissimilarity(dead, "A", "stage 3")
    found = pairwise_dissimilarity(dead, "A", "stage 3", "one")
    np.testing.assert_allclose(found, [0.4, 1, 0.2, 1, 1, 1], atol=1e-12)  # all pairs with image 2 are 1
    result = affinity([(0, 0, torch.ones(4, 4)), (1, 0, B)], ["A", "B"], ["x"], "one")
    assert np.isfinite(result.values).all()
    assert result.values[0].tolist() == [[1, 0], [0, 1]]
    assert result.constant == (("A", "x"),)
    with pytest.raises(UsageError, match="not finite"):
        pairwise_dissimilarity(A * float("inf"), "A", "x")
    with pytest.raises(UsageError, match="at least 3"):
        of(A[:2], B[:2])
    with pytest.raises(UsageError, match="same probe images"):
        of(A, B[:3])


def test_centred_features_do_not_see_what_all_images_share() -> None:
    """The specification's addition of 2026-11-29: a constant added to a feature changes which images look alike, unless
    every feature is centred over the images first.
    """
    shifted = 3 * torch.eye(3) + torch.tensor([9.0, 0, 0])
    # By hand: (12, 0, 0), (9, 3, 0), (9, 0, 3) correlate by 60 / sqrt(96 * 42) and 33 / 42; centred, (2, -1, -1) and
    # its like by -1/2.
    r = 60 / 4032**0.5
    np.testing.assert_allclose(pairwise_dissimilarity(shifted, "A", "x"), [1 - r, 1 - r, 1 - 33 / 42], atol=1e-12)
    centred = pairwise_dissimilarity(shifted, "A", "x", center_images=True)
    np.testing.assert_allclose(centred, [1.5, 1.5, 1.5], atol=1e-12)

    both = [(0, 0, A), (1, 0, A + torch.tensor([20.0, 0, 0, 0]))]
    found = [affinity(both, ["A", "B"], ["x"], center_images=on).values[0, 0, 1] for on in (False, True)]
    assert found[1] == pytest.approx(1, abs=1e-12)
    assert found[0] == pytest.approx(19 / 35, abs=1e-12)
    assert affinity([(0, 0, A), (1, 0, B)], ["A", "B"], ["x"], center_images=True).values[0, 0, 1] == pytest.approx(
        scipy.stats.spearmanr(*((1 - np.corrcoef(x - x.mean(0)))[np.triu_indices(4, 1)] for x in (A, B))).statistic
    )


def networks(folder: Path, domains: str = "single") -> tuple[object, object, object]:
    trainer = toy_trainer(folder, domains=domains, steps=2, size=32)
    segments = segments_of(trainer.backbone(), trainer.data, "stage")
    return trainer, segments, trainer.single_task("a").graph


@pytest.mark.usefixtures("float64")
def test_features_are_read_in_eval_mode_and_whole(tmp_path: Path) -> None:
    trainer, segments, graph = networks(tmp_path)
    before = {name: value.clone() for name, value in graph.network().state_dict().items()}
    batches = probe_batches(trainer, 20, Role.FIT, 0)
    once, again = (dict(features_of(graph, "a", segments.blocks, batches)) for _ in range(2))
    assert all(torch.equal(once[d], again[d]) for d in once)
    assert all(torch.equal(before[name], value) for name, value in graph.network().state_dict().items())
    channels = [block.out_shape.channels for block in trainer.backbone().blocks]
    assert [once[d].shape[1] for d in range(4)] == [channels[0] * 64, channels[1] * 16, channels[2] * 4, channels[3]]
    single = [type(batch)({"image": batch.images["image"][k : k + 1]}, {}, {}) for batch in batches for k in range(20)]
    for d, values in features_of(graph, "a", segments.blocks, single):
        torch.testing.assert_close(values, once[d])  # computed in float64, kept in float32
    images = batches[0].images["image"]
    backbone = trainer.backbone()
    backbone.module().load_state_dict(dict(zip(backbone.module().state_dict(), backbone_state(graph), strict=True)))
    with torch.inference_mode():
        x = backbone.module().eval().stem(images)
        for number, block in enumerate(backbone.blocks):
            x = block(x)
            torch.testing.assert_close(once[number], x.flatten(1).float())


def backbone_state(graph: object) -> list[torch.Tensor]:
    nodes = [node for node in graph.nodes.values() if node.operation.origin == "backbone"]
    return [value for node in nodes for value in node.module.state_dict().values()]


@pytest.mark.numerical
def test_more_features_than_memory_are_read_in_several_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, segments, graph = networks(tmp_path)
    batches = probe_batches(trainer, 20, Role.FIT, 0)
    whole = dict(features_of(graph, "a", segments.blocks, batches))
    monkeypatch.setattr(module, "FEATURE_BYTES", 4 * 20 * whole[3].shape[1] + 1)
    parts = dict(features_of(graph, "a", segments.blocks, batches))
    assert len(module._passes(*with_locations(graph, "a", segments.blocks), batches)) == 4
    assert all(torch.equal(parts[d], whole[d]) for d in whole)


@pytest.mark.usefixtures("float64")
def test_the_last_location_follows_the_tail(tmp_path: Path) -> None:
    from methods.backbones.backbone import BackboneConfig, create_backbone
    from methods.graph.task_graph import Value
    from methods.plain import plain_graph

    backbone = create_backbone(BackboneConfig("test_vit", image_size=(32, 32)), seed=0)
    trainer = toy_trainer(tmp_path, size=32)
    graph = plain_graph(trainer.data, ["a"], backbone, trainer.head)
    graph.outputs["a"] = Value([n.name for n in graph.nodes.values() if n.operation.origin == "backbone"][-1])
    located, names = with_locations(graph, "a", backbone.stages)
    images = {"image": torch.randn(2, 3, 32, 32)}
    with torch.inference_mode():
        values = located.module(*names).eval()(images)
        expected = backbone.module().eval()(images["image"])
    assert_same(values[names[-1]], expected)


def test_probes_are_a_random_part_of_fit_and_equal_parts_of_all_domains(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path / "single")
    fit = next(iter(trainer.batches(Role.FIT)))
    drawn = probe_batches(trainer, 20, Role.FIT, 0)[0]
    assert len(drawn.images["image"]) == 20
    assert drawn.index["image"].tolist() != list(range(20))
    assert torch.equal(fit.images["image"][drawn.index["image"]], drawn.images["image"])
    assert torch.equal(drawn.index["image"], probe_batches(trainer, 20, Role.FIT, 0)[0].index["image"])
    assert not torch.equal(drawn.index["image"], probe_batches(trainer, 20, Role.FIT, 1)[0].index["image"])
    multi = probe_batches(toy_trainer(tmp_path / "multi", domains="multi"), 20, Role.FIT, 0)
    assert [{name: len(images) for name, images in batch.images.items()} for batch in multi] == [{"a": 10}, {"b": 10}]
