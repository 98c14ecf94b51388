"""Where each part of low-rank updates comes from; `list lora` prints it."""

from __future__ import annotations

from methods.contracts import Fidelity, Reference, Statement

FIDELITY = Fidelity(
    citation="A. Agiza, M. Neseem, S. Reda, MTLoRA, CVPR 2024, pp. 16196-16205",
    link="https://arxiv.org/abs/2403.20320",
    references=(
        Reference(
            "agiza2024mtlora",
            "inproceedings",
            ("A. Agiza", "M. Neseem", "S. Reda"),
            "MTLoRA: Low-Rank Adaptation Approach for Efficient Multi-Task Learning",
            "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
            2024,
            "https://arxiv.org/abs/2403.20320",
        ),
    ),
    statements=(
        Statement("official code", "The code was read (scale-lab/MTLoRA at 333a375), the paper was not."),
        Statement("official code", "Every linear layer of every block has a shared update s B A; A starts by He's "
                  "uniform rule, B at 0. s is a factor and not alpha / r: 4 in the shipped runs, ranks 16 to 64."),
        Statement("official code", "Task updates s_t B_t A_t, rank 4, in proj, fc1 and fc2, never in qkv: attention "
                  "is computed once. y_t = W x + b + s_t B_t A_t x_t (side) lacks the layer's shared update; matrixv2 "
                  "adds it (side_with_shared). Which of the two the paper means is open."),
        Statement("official code", "Trained besides: norms, patch embedding, patch merging, bias of relative "
                  "positions. Everything else is frozen, biases too. Dropout .05 on the input of updates."),
        Statement("official code", "recipe: published. AdamW 5e-4, decay .05, cosine to 5e-6 after 20 of 300 epochs "
                  "of warm-up, clipped at 5. Batch 32 and loss weights (semseg 1, parts 2, saliency 5, normals 10) "
                  "are the cell's to set; a joint base is trained by the cell's recipe."),
        Statement("default", "Task updates in the last block only, or the last m: the suite's heads read one feature, "
                  "so updates at the end of inner stages would be dead. The code has them at the end of all four "
                  "stages, for decoders that read every stage. Published rows are therefore not reproduced."),
        Statement("default", "From the second of the last m blocks on a task runs its own (own), with shared updates "
                  "in qkv only; tail and head run per task."),
        Statement("default", "side trains no shared update in fc2 of the first of these blocks, which no task reads; "
                  "the code holds one. Its shared updates of proj and fc1 are deployed apart, all others in W."),
        Statement("default", "Embeddings are all that a stem holds besides norms. Linear layers and convolutions are "
                  "updated in all blocks and in the tail. Patch merging has no update (MTLoRA+ is not offered)."),
        Statement("default", "Convolutions: k x k to r channels, then 1 x 1; grouped ones have none. Blocks that are "
                  "not cut into sub-layers run whole for each task, with updates in all their layers."),
        Statement("default", "Swin V2 multiplies by the weight of its qkv: there the update has no dropout. Its norms "
                  "follow proj and fc2, and run on each x_t. Swin's proj runs on the map, not in windows."),
        Statement("default", "One mask of stochastic depth for all streams of a sub-layer, but not in whole blocks."),
        Statement("default", "base: joint, where weights are random: one network of all tasks first. With that, "
                  "hard_sharing with steps_factor 2 is the row of equal cost. Nothing is searched: no random control."),
        Statement("default", "Batch norms: weights are trained (norms), statistics follow the data, for each path."),
    ),
)  # fmt: skip
