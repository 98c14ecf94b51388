"""The parameters of pruning, and which rule reads which."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from methods.parameters import MethodParams

Rule = Literal["static", "pretrained", "dynamic", "magnitude", "random", "soft_threshold"]
Saliency = Literal["gradient", "gradient_weight2", "magnitude"]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

# Way of s by Adam at a constant pull, in ways from the start to 0. Weight decay pulls it ever less the nearer it comes:
# with 2 it is at -1, a threshold of .27, when with a constant pull it would be beyond 0.
_MOVEMENT = 2.0
_READ_UNDER: dict[str, tuple[Rule, ...]] = {
    "keep": ("static", "pretrained"),
    "n_batches": ("static", "pretrained"),
    "saliency": ("static", "pretrained"),
    "update_every": ("dynamic",),
    "update_until": ("dynamic", "soft_threshold"),
    "drop_rate": ("dynamic",),
    "layer_floor": ("static", "pretrained", "dynamic", "magnitude", "random"),
    "reinit": ("pretrained", "magnitude"),
    "threshold_init": ("soft_threshold",),
    "threshold_decay": ("soft_threshold",),
    "lr_threshold": ("soft_threshold",),
}


class PrunedParams(MethodParams):
    """The parameters of pruning. Prunable are the weights of all convolutions and linear layers of the backbone."""

    rule: Rule = Field(
        default="static",
        description="`static` prunes before training by gradients, `pretrained` after the training of a dense network, "
        "`dynamic` drops and grows in training, `soft_threshold` learns a threshold; `magnitude`, after a dense "
        "training, and `random` are controls",
    )
    density: Share = Field(default=0.1, description="share of the backbone's prunable weights that is kept")
    keep: Literal["solved"] | Share = Field(
        default="solved",
        description="share of these weights in the set of each task, of which the union is kept: solved for `density`, "
        "or a number, from which the density follows",
    )
    n_batches: Annotated[int, Field(ge=1)] = Field(default=50, description="batches of fit that gradients are taken on")
    saliency: Saliency | None = Field(
        default=None,
        description="score of a weight w: `gradient` |w dL/dw|, `gradient_weight2` w^2 |dL/dw|, `magnitude` |w|; null "
        "takes the first for static, the second for pretrained",
    )
    update_every: Share = Field(default=1 / 400, description="share of the steps between two changes of masks")
    update_until: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.75, description="share of the steps after which masks are fixed; by then a threshold can reach 0"
    )
    drop_rate: Share = Field(
        default=0.5, description="share of the weights that the first change drops; it falls to 0 as a cosine"
    )
    layer_floor: Annotated[int, Field(ge=0)] = Field(default=1, description="least number of kept weights of a tensor")
    reinit: bool = Field(default=False, description="surviving weights restart from the cell's initial weights")
    threshold_init: Annotated[float, Field(lt=0)] = Field(
        default=-30.5, description="s at the start; weights below sigmoid(s) are 0"
    )
    threshold_decay: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="weight decay of s, which pulls it up towards 0 against the losses"
    )
    lr_threshold: Positive | None = Field(
        default=None,
        description="learning rate of s (Adam); null: it can come near 0 within `update_until` of the steps",
    )

    @property
    def score(self) -> Saliency:
        """`saliency`, or the rule's own."""
        return self.saliency or ("gradient" if self.rule == "static" else "gradient_weight2")

    def threshold_rate(self, steps: int) -> float:
        """Learning rate of s in a stage of `steps`."""
        return self.lr_threshold or -_MOVEMENT * self.threshold_init / max(1, round(self.update_until * steps))

    @model_validator(mode="after")
    def _read(self) -> PrunedParams:
        """What is given must be read: a row whose label names a parameter without effect misleads."""
        given = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        for name in given:
            if self.rule not in (rules := _READ_UNDER.get(name, (self.rule,))):
                raise ValueError(f"{name} is read under rule: {' or '.join(rules)} only, not under {self.rule}")
        if self.keep != "solved" and "density" in given:
            raise ValueError(f"density follows from keep, {self.keep:g}; give one of the two")
        if self.score == "magnitude" and "n_batches" in given:
            raise ValueError("n_batches is read by saliencies of gradients, not by magnitude")
        return self
