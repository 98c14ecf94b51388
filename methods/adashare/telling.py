"""What a run of AdaShare reports: the policy that is deployed, and all that were trained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from methods.adashare.network import SearchNetwork
from methods.adashare.parameters import AdaShareParams
from methods.adashare.pictures import agreement, course_figure, policy_figure
from methods.adashare.policy import Policy
from methods.contracts import Trainer


def tell_policy(params: AdaShareParams, trainer: Trainer, network: SearchNetwork | None, policy: Policy) -> None:
    """Facts, pictures and artifacts of the policy that is deployed."""
    tasks, units = trainer.data.task_names, trainer.backbone().units
    for task, executed in zip(tasks, policy, strict=True):
        trainer.fact(f"units executed, {task}", sum(executed), f"of {len(units)}")
    trainer.fact("units that no task executes", sum(not any(unit) for unit in zip(*policy, strict=True)))
    trainer.fact("decisions that two tasks share", 100 * agreement(policy), "percent")
    trainer.chosen(
        f"{task}: block {block}"
        for task, executed in zip(tasks, policy, strict=True)
        for block, runs in zip(units, executed, strict=True)
        if runs
    )
    if params.sharing_weight == 0 and params.sparsity_form == "neg_log_skip_mean":
        trainer.flag("sharing_weight is 0: sparsity keeps its plain form, the released code would weigh it by depth.")
    if network is None:
        trainer.figure("policy", policy_figure(tasks, units, torch.tensor(policy).float(), policy))
        return
    alpha = network.best_alpha()
    trainer.fact("cycle of the policy", int(network.best_cycle))
    trainer.artifact("probabilities", alpha)
    trainer.artifact("course", network.course)
    trainer.figure("policy", policy_figure(tasks, units, alpha, policy))
    trainer.figure("policy-course", course_figure(tasks, units, network.course.cpu(), int(network.best_cycle)))
    trainer.moved("execute probabilities", network.course[0], alpha)


def tell_scores(trainer: Trainer, policies: Sequence[Policy], scores: Sequence[float]) -> None:
    """All policies that were trained, and their scores on select."""
    trainer.artifact("policies", torch.tensor(policies))  # bool [k, K, L], True = execute
    trainer.artifact("policy_scores", torch.tensor(scores))  # float [k], on select; 0 for the first
    if len(policies) > 1:
        trainer.fact("score of the draws on select, mean", statistics.fmean(scores), "relative gain")
        trainer.fact("score of the draws on select, sd", statistics.stdev(scores), "relative gain")
        trainer.fact("score of the draws on select, best", max(scores), "relative gain")
