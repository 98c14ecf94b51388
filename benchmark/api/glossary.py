"""What `list kinds`, `list metrics` and `list heads` print: what can be learnt, how it is judged, what reads a map."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import get_args

WIDTH = 118
METRICS: Mapping[str, str] = {
    "accuracy": "share of images whose most likely class is the label; of an attribute, yes where its logit is above 0",
    "accuracy_mean": "the mean of the tasks' accuracies",
    "balanced_accuracy": "the mean, over the classes that occur, of the share of each that is right",
    "auroc": "share of pairs of one yes and one no that the scores put in order, ties one half; two classes",
    "mean_average_precision": "the mean, over labels that occur, of the area under precision against recall (steps)",
    "f1": "the mean, over labels that occur or are predicted, of 2 TP / (2 TP + FP + FN); predicted: logit above 0",
    "miou": "the mean, over classes in label or prediction, of intersection over union, pixels of all images together",
    "pixel_acc": "share of pixels whose most likely class is the label",
    "weighted_ce_err": "cross-entropy with class weights, averaged over images (Taskonomy)",
    "mean_angle": "angle between predicted and true normal, mean over pixels",
    "median_angle": "the same, median over pixels",
    "within_11_25": "share of pixels whose angle is below 11.25 degrees",
    "within_22_5": "share of pixels whose angle is below 22.5 degrees",
    "within_30": "share of pixels whose angle is below 30 degrees",
    "cosine_similarity": "cosine of the angle, mean over pixels (Taskonomy)",
    "abs_err": "absolute difference, mean over pixels or images",
    "rel_err": "absolute difference divided by the label, mean over pixels",
    "mse": "squared difference, mean over pixels or images",
    "rmse": "square root of the mean squared difference",
    "delta_1_25": "share of pixels with max(prediction / label, label / prediction) below 1.25",
    "delta_1_25_2": "the same below 1.25 squared",
    "delta_1_25_3": "the same below 1.25 to the third power",
    "max_iou": "intersection over union of yes, mean over images, at the threshold that is best for the split",
    "iou_at_50": "the same at the threshold 0.5",
    "f_dilated": "F of edge pixels within 0.0075 of the diagonal of a true one, at the best threshold",
    "best_f1": "the same where a pixel must be hit exactly",
    "ods_f": "F of thinned edges with one-to-one matches; shown from published boards, never computed here",
    "delta_m": "mean relative gain of the tasks over the single-task networks of the same seed",
}
HEADS: Mapping[str, str] = {
    "conv1x1": "a 1x1 convolution (the default); losses and metrics resize what it draws",
    "subpixel": "a 1x1 convolution that draws a patch of pixels for every place of the map (Shi et al. 2016)",
    "fcn": "mmsegmentation's FCNHead: two 3x3 convolutions and a 1x1",
    "aspp": "mmsegmentation's ASPPHead: dilated convolutions side by side, rates 1, 12, 24 and 36",
    "upernet": "mmsegmentation's UPerHead on a pyramid made of the one map; draws at four times its resolution",
    "adashare_aspp": "the head of AdaShare's released code: the sum of four dilated branches",
}


def kinds() -> Iterator[str]:
    """Every kind of task: labels with type and shape, what is ignored, loss, metrics."""
    from datasets.kinds import get_kind, kind_names
    from datasets.kinds.metrics import computed_metrics

    yield "Kinds of tasks. B images of H x W pixels, C channels; `list metrics` says what the metrics are"
    for name in kind_names():
        kind = get_kind(name)
        about = inspect.getdoc(inspect.getmodule(type(kind))) or ""
        yield from _entry(name, " ".join(about.split("\n\n")[0].split()).removeprefix(f"`{name}`: "))
        yield from _wrapped(f"{'labels with pixels' if kind.dense else 'one label an image'}; ignored: {kind.ignore}")
        yield from _wrapped(f"metrics: {', '.join(computed_metrics(name))}")


def metrics() -> Iterator[str]:
    """Every metric: unit, direction, kinds and meaning."""
    from datasets.kinds import kind_names
    from datasets.kinds.metrics import METRICS as ROWS

    kind_names()  # kinds may bring metrics of their own
    yield "Metrics: unit, direction and kinds; a task is shown at a glance by the first metric that it names"
    for name, row in ROWS.items():
        direction = "higher" if row.higher_is_better else "lower"
        judged = ", ".join(row.kinds) if row.scope == "task" else "over all tasks"
        yield from _entry(name, METRICS.get(name, ""))
        yield from _wrapped(f"{row.unit.replace('_', ' ')}, {direction} is better; {judged}")


def heads() -> Iterator[str]:
    """Every decoder of dense heads with its hidden width."""
    from methods.backbones.decoders import HIDDEN, Decoder

    yield "Heads. One label an image: pooling, the family's norm and a linear layer. Labels with pixels: a decoder,"
    yield "  as a suite names it: `head: {dense: fcn, hidden: 256}`"
    for name in get_args(Decoder):
        width = f"hidden = {HIDDEN[name]} channels" if name in HIDDEN else "nothing inside, so no hidden"
        yield from _entry(name, HEADS.get(name, ""))
        yield from _wrapped(width)


def _entry(name: str, meaning: str) -> list[str]:
    return textwrap.wrap(f"{name}: {meaning}", WIDTH, subsequent_indent="    ", break_long_words=False)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_long_words=False)
