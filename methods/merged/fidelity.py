"""Where each part of merging comes from; `list merged` prints it."""

from __future__ import annotations

from methods.contracts import Fidelity, Reference, Statement

FIDELITY = Fidelity(
    citation="G. Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023; P. Yadav et al., TIES-Merging, "
    "NeurIPS 2023; E. Yang et al., Representation Surgery for Multi-Task Model Merging, ICML 2024",
    link="https://arxiv.org/abs/2212.04089",
    references=(
        Reference(
            "ilharco2023editing",
            "inproceedings",
            (
                "G. Ilharco",
                "M. T. Ribeiro",
                "M. Wortsman",
                "S. Gururangan",
                "L. Schmidt",
                "H. Hajishirzi",
                "A. Farhadi",
            ),
            "Editing Models with Task Arithmetic",
            "International Conference on Learning Representations",
            2023,
            "https://arxiv.org/abs/2212.04089",
        ),
        Reference(
            "yadav2023ties",
            "inproceedings",
            ("P. Yadav", "D. Tam", "L. Choshen", "C. Raffel", "M. Bansal"),
            "TIES-Merging: Resolving Interference When Merging Models",
            "Advances in Neural Information Processing Systems",
            2023,
            "https://arxiv.org/abs/2306.01708",
        ),
        Reference(
            "yang2024representation",
            "inproceedings",
            ("E. Yang", "L. Shen", "Z. Wang", "G. Guo", "X. Chen", "X. Wang", "D. Tao"),
            "Representation Surgery for Multi-Task Model Merging",
            "International Conference on Machine Learning",
            2024,
            "https://arxiv.org/abs/2402.02705",
        ),
    ),
    statements=(
        Statement("third party", "average: the mean of the theta_t over all backbone parameters, norms included "
                  "(fusion_bench, simple_average)."),
        Statement("official code", "task_arithmetic: theta_0 + lambda sum tau_t (EnnengYang/AdaMerging, "
                  "task_vectors.py); .3 there for 8 tasks, 1/T here."),
        Statement("official code", "ties: the largest 20 % of each tau_t over the whole vector, elected signs, where a "
                  "sum is 0 the sign of most weights, disjoint sum times .3 (ties_merging_utils.py)."),
        Statement("recalled", "ties with disjoint: mean and lambda 1, the default here, as in the paper."),
        Statement("third party", "trim: tensor ranks the entries of each tensor (mergekit); its rule for zero sums is "
                  "another and not taken: the majority is of all weights."),
        Statement("default", "ties keeps exactly round(density n) entries; the released threshold keeps one more, and "
                  "all that equal it."),
        Statement("default", "No buffer is merged, where the released arithmetic adds running statistics, which can "
                  "end below zero. Norm statistics are re-estimated by one pass of fit, and again after heads were "
                  "trained, in whose training norms follow the batches."),
        Statement("default", "coefficient: select tries .1 to 1 with the single-task heads on select; statistics are "
                  "re-estimated for each, so a value costs a pass of select and, with batch norms, one of fit."),
        Statement("third party", "Surgery: head t reads h - U_t ReLU(D_t h), U_t from 0, rank 16, trained by L1 to the "
                  "feature of f_t without labels, Adam 1e-3, 1,000 steps (fusion_bench); here at most the budget's."),
        Statement("default", "Surgery is trained on fit and arch, there on test images; after the tail at every "
                  "position, D_t drawn as torch draws linear layers; before heads are retrained or all is fine-tuned, "
                  "where they are."),
        Statement("default", "heads: retrained, the default. Fresh heads for the budget's steps on the frozen merged "
                  "backbone; the idea is that of single-input multi-output merging (arXiv 2504.11268), which was not "
                  "read. own keeps the single-task heads: no final training, and the record says so."),
        Statement("default", "finetune: everything jointly for the budget's steps, so weights get twice its updates."),
        Statement("default", "The f_t are the table's single-task networks, from one theta_0; networks of other starts "
                  "would need their permutations aligned, which is not done."),
        Statement("recalled", "From random weights the f_t need not lie in one basin: the row is flagged "
                  "merged-scratch."),
        Statement("default", "No search of an architecture, so no random control. The row of equal cost is "
                  "hard_sharing with steps_factor T, T + 1 with retrained heads or fine-tuning."),
        Statement("default", "None of the papers was read; the code named here was."),
    ),
)  # fmt: skip
