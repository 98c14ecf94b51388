"""What rows and tables are called: the parameters that tell rows apart, the settings that all rows share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from benchmark.records.documents import CellDocument
from benchmark.records.keys import EQUAL_BALANCING, flat_params
from benchmark.records.record import Record

DASH = "\N{EN DASH}"


def row_labels(firsts: Sequence[Record]) -> list[str]:
    """Method and the parameters that matter: those that are not at their default, or in which rows of the method
    differ. A value that most rows of the method share is left out; only rows with another value show it. Loss balancing
    other than equal comes last: `hard_sharing + pcgrad`. What a tuning chose is left out: it stands in the notes, and a
    row keeps its name whether tuned or not.

    firsts: one record of each row of a table.
    """
    flat = [dict(flat_params(_told(record, record.params))) for record in firsts]
    siblings: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(firsts):
        siblings[record.method].append(position)
    labels = [""] * len(firsts)
    for method, positions in siblings.items():
        names = {name for position in positions for name in flat[position]}
        usual = {name: _usual([flat[position].get(name, DASH) for position in positions]) for name in names}
        for position in positions:
            telling = {name for name in names if flat[position].get(name, DASH) != usual[name]}
            given = _told(firsts[position], firsts[position].audit.get("non_default_params", {}))
            shown = telling | {name for name, _ in flat_params(given)}
            text = ", ".join(f"{name}={flat[position].get(name, DASH)}" for name in sorted(shown))
            labels[position] = f"{method} ({text})" if text else method
    return [label + text for label, text in zip(labels, _balancing_texts(firsts), strict=True)]


def short_labels(firsts: Sequence[Record]) -> list[str]:
    """Method and what tells its rows apart: of the parameters in which rows of the method differ those that are not at
    their default. Rows that are still called alike keep their whole labels.

    firsts: one record of each row of a table.
    """
    flat = [dict(flat_params(_told(record, record.params))) for record in firsts]
    labels = []
    for record, own, balancing in zip(firsts, flat, _balancing_texts(firsts), strict=True):
        siblings = [other for other, of in zip(flat, firsts, strict=True) if of.method == record.method]
        given = dict(flat_params(record.audit.get("non_default_params", record.params)))
        telling = [name for name in sorted(own) if name in given and any(s.get(name) != own[name] for s in siblings)]
        text = ", ".join(f"{name}={own[name]}" for name in telling)
        labels.append((f"{record.method} ({text})" if text else record.method) + balancing)
    return [
        short if labels.count(short) == 1 else whole for short, whole in zip(labels, row_labels(firsts), strict=True)
    ]


def _told(record: Record, params: Mapping[str, object]) -> dict[str, object]:
    """Parameters that a label may hold: of a trial all, and the factor on its learning rate; of a tuned row those that
    the suite gives.
    """
    if record.is_trial:
        return {**params, "lr": f"x {record.cell['method'].get('lr_factor', 1.0):.3g}"}
    return {name: value for name, value in params.items() if name in record.untuned_params}


def _balancing_texts(firsts: Sequence[Record]) -> list[str]:
    """` + pcgrad` for each row that is not balanced equally, with the params in which rows of one method and balancing
    differ.
    """
    rows = [(record.method, record.balancing["name"]) for record in firsts]
    params = [dict(flat_params(record.balancing.get("params", {}))) for record in firsts]
    texts = []
    for row, own in zip(rows, params, strict=True):
        if row[1] == EQUAL_BALANCING["name"]:
            texts.append("")
            continue
        siblings = [other for found_row, other in zip(rows, params, strict=True) if found_row == row]
        telling = sorted(name for name in own if any(other.get(name) != own[name] for other in siblings))
        text = ", ".join(f"{name}={own[name]}" for name in telling)
        texts.append(f" + {row[1]} ({text})" if text else f" + {row[1]}")
    return texts


def _usual(values: Sequence[str]) -> str | None:
    """The value that more than half of the rows have."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def table_head(records: Sequence[Record]) -> dict[str, str]:
    """The settings that all rows of a table share, {field: text}."""
    cell = records[0].cell
    tiers = sorted({tier for record in records if (tier := record.audit.get("tier"))})
    head = {
        "data": _described(cell["data"], "dataset", ("layout", "version", "options")),
        "protocol": cell["data"]["protocol"],
        "tasks": _described_tasks(cell),
        "labelled": _labelled(records),
        "backbone": _described(cell["backbone"], "name", ("weights", "image_size", "output_stride")),
        "head": _described(cell.get("head", {}), "name", ()),
        "recipe": cell["recipe"]["name"],
        "budget": f"{cell['budget']['steps']} steps",
        "selection": cell["selection"]["rule"],
        "tuning": _described_tuning(cell),
        "data tier": ", ".join(tiers) or "not recorded",
    }
    return {field: text for field, text in head.items() if text}


def _labelled(records: Sequence[Record]) -> str:
    """Share of the evaluated samples that have a label, of tasks that lack some: `article 88.2 %`; empty if none does.

    Metrics count samples, or pixels of dense labels, of which there are more than samples.
    """
    shares: dict[str, float] = {}
    for record in records:
        for task, scores in record.metrics.items():
            n_labels = max((entry["n_units"] for entry in scores.values()), default=0)
            n_samples = record.n_evaluated.get(task, 0)
            if 0 < n_labels < n_samples:
                shares[task] = 100 * n_labels / n_samples
    return ", ".join(f"{task} {shares[task]:.4g} %" for task in records[0].tasks if task in shares)


def _described(settings: Mapping[str, object], name: str, first: Sequence[str]) -> str:
    """`resnet18 (weights none, output_stride 32)`: the name, the fields in `first`, then the options that are set."""
    shown = [field for field in first if settings.get(field) not in (None, "", {}, [])]
    if name == "name":
        shown += [field for field in settings if field not in (name, *first, "in_chans") and settings[field]]
    parts = [f"{field} {text}" for field in shown for text in [_plain_text(settings[field])]]
    title = str(settings.get(name) or "")
    return f"{title} ({', '.join(parts)})".strip() if parts else title


def _plain_text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in flat_params(value))
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value)


def _described_tasks(cell: CellDocument) -> str:
    given = cell["data"].get("task_weights", {})
    weights = {name: given.get(name) for name in cell["data"]["tasks"]}
    return ", ".join(
        name if weight in (None, 1.0) else f"{name} (weight {weight:g})" for name, weight in weights.items()
    )


def _described_tuning(cell: CellDocument) -> str:
    """Empty for a table of equal recipe: every row as the suite has it."""
    tuned = cell.get("tuned")
    if tuned is None:
        return ""
    rates = ", ".join(f"{task} x {factor:.3g}" for task, factor in tuned["single_task"].items())
    what = "trials of a tuning" if "part" in cell else "equal tuning"
    return f"{what} at seed {tuned['seed']}, single-task learning rates {rates}"
