"""Suites of published settings, planned on small copies of their data."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from benchmark.plan.cells import PlannedCell, plan
from benchmark.plan.suite_file import find_suite, read_suite
from tests.twins import write_twin

SUITES = {
    "nyuv2_3task_adashare": ("nyuv2", "adashare"),
    "nyuv2_2task_adashare": ("nyuv2", "adashare"),
    "nyuv2_13class_libmtl": ("nyuv2", "mtan_npy"),
    "nyuv2_standard": ("nyuv2", "adashare"),
    "nyuv2_13class_standard": ("nyuv2", "mtan_npy"),
    "cityscapes_2task_adashare": ("cityscapes", "adashare"),
    "cityscapes_standard": ("cityscapes", "official"),
    "dmo_four_tasks": ("class_sets", "torchvision"),
    "pascal_5task_bmtas": ("pascal_context", "pascal_mt"),
    "pascal_5task_tsn": ("pascal_context", "pascal_mt"),
    "pascal_4task_mtlora": ("pascal_context", "pascal_mt"),
    "pascal_standard": ("pascal_context", "pascal_mt"),
    "taskonomy_5task_adashare": ("taskonomy", "adashare"),
    "taskonomy_standard": ("taskonomy", "official"),
    "celeba_9task_standard": ("celeba", "torchvision"),
    "celeba_40task_standard": ("celeba", "archive"),
    "decathlon_dmo": ("decathlon", "extracted"),
    "decathlon_standard": ("decathlon", "tars"),
    "domainnet_adashare": ("domainnet", "adashare"),
    "domainnet_standard": ("domainnet", "official"),
}


@functools.cache
def cells(name: str, method: str | None = None) -> list[PlannedCell]:
    """The cells of a shipped suite, or of its rows of one method, on a small copy of its data."""
    suite = read_suite(find_suite(name))
    if method is not None:
        rows = tuple(row for row in suite.methods if row.name == method)
        suite = suite.model_copy(update={"methods": rows})
    data = tuple(part.model_copy(update={"options": {**part.options, "profile": "twin"}}) for part in suite.data)
    with tempfile.TemporaryDirectory() as folder:
        twin = write_twin(Path(folder), *SUITES[name])
        return plan(suite.model_copy(update={"data": data, "seeds": suite.seeds[:1]}), twin)
