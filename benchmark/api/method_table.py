"""`list methods --table`: all registered methods side by side, from what each declares of itself."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.escape import markdown_row, markdown_text, plain
from benchmark.plan.plugins import load_plugins
from datasets.errors import unknown

if TYPE_CHECKING:
    from methods.contracts import Reference
    from methods.registry import AnyMethod

FORMS = ("terminal", "markdown")
_WIDTHS = {  # of the terminal's columns at most, where words can be wrapped
    "method": 30,
    "weights": 8,
    "activations": 11,
    "searches": 10,
    "size set by": 18,
    "passes": 7,
    "before": 7,
    "backbones": 9,
    "labels": 8,
    "domains": 7,
    "papers": 24,
}
_LEGEND = (
    "T: tasks. Weights, activations: how much of the backbone's every task reads, on one image. Passes: of the "
    "backbone over an image, in the final network. Before: training ahead of the final one, in budgets of that, with "
    "defaults from random weights. Backbones, labels: what it can be run on; one form: all labels per pixel or all per "
    "image. Domains: tasks share their images (single), or each has its own (multi)."
)
_ABSENT = "–"  # noqa: RUF001


def method_table(form: str = "terminal", plugins: Sequence[str | Path] = ()) -> str:
    """A row for each registered method, in alphabetical order, and a legend. form: `terminal` or `markdown`.

    plugins: files that register more methods. Raises UnknownNameError for another form.
    """
    from methods.registry import get_method, method_names

    if form not in FORMS:
        raise unknown("form of the table", form, FORMS)
    load_plugins(plugins)
    made = {name: get_method(name) for name in method_names()}
    return "\n".join(_markdown(made) if form == "markdown" else _terminal(made))


def _markdown(methods: dict[str, AnyMethod]) -> Iterator[str]:
    yield markdown_row(list(_WIDTHS))
    yield "|" + "---|" * len(_WIDTHS)
    for name, method in methods.items():
        cited = [(markdown_text(paper_text(one)), one.link) for one in method.fidelity.references]
        papers = [f"[{text}]({link})" if link else text for text, link in cited]
        yield markdown_row([*map(markdown_text, _cells(name, method)), ", ".join(papers) or _ABSENT])
    yield ""
    yield f"*{markdown_text(_LEGEND)}*"


def _terminal(methods: dict[str, AnyMethod]) -> Iterator[str]:
    rows = [list(_WIDTHS)]
    for name, method in methods.items():
        papers = ", ".join(map(paper_text, method.fidelity.references)) or _ABSENT
        rows.append(list(map(plain, [*_cells(name, method), papers])))
    wrapped = [[textwrap.wrap(cell, most) for cell, most in zip(row, _WIDTHS.values(), strict=True)] for row in rows]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*wrapped, strict=True)]
    for number, row in enumerate(wrapped):
        for parts in itertools.zip_longest(*row, fillvalue=""):
            yield "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        if number == 0:
            yield "─" * (sum(widths) + 2 * (len(widths) - 1))
    yield from textwrap.wrap(_LEGEND, sum(widths) + 2 * (len(widths) - 1))


def _cells(name: str, method: AnyMethod) -> list[str]:
    """All columns but the papers."""
    domains = "single" if method.needs_all_labels else "both"
    searches = "drawn at random" if method.is_random_architecture else method.search_space or _ABSENT
    traits = method.traits
    if traits is None:
        return [name, _ABSENT, _ABSENT, searches, _ABSENT, _ABSENT, _ABSENT, _ABSENT, _ABSENT, domains]
    before = budgets_text(traits.before, traits.before_per_task)
    return [
        *(name, traits.weights, traits.activations, searches, traits.size_parameter or _ABSENT),
        *(traits.passes, before, traits.backbones, traits.labels, domains),
    ]


def budgets_text(fixed: float, per_task: float) -> str:
    """Budgets of training for T tasks: `0`, `1.2`, `T`, `1 + 2 T`."""
    times = "T" if per_task == 1 else f"{per_task:g} T"
    parts = [*([f"{fixed:g}"] if fixed else []), *([times] if per_task else [])]
    return " + ".join(parts) or "0"


def paper_text(reference: Reference) -> str:
    """Surnames and year, as texts cite: `Choi and Im 2023`, `Sun et al. 2020`; without TeX accents."""
    names = [re.sub(r"^([A-Z]\.(-[A-Z]\.)? )+", "", author) for author in reference.authors]
    names = [re.sub(r"[{}]|\\\W", "", name) for name in names]
    authors = " and ".join(names) if len(names) <= 2 else f"{names[0]} et al."
    return f"{authors} {reference.year}"
