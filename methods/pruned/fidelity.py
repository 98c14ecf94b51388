"""Where each part of pruning comes from; `list pruned` prints it."""

from __future__ import annotations

from methods.contracts import Fidelity, Reference, Statement

FIDELITY = Fidelity(
    citation="X. Sun et al., DiSparse: Disentangled Sparsification for Multitask Model Compression, CVPR 2022",
    link="https://github.com/SHI-Labs/DiSparse-Multitask-Model-Compression",
    references=(
        Reference(
            "sun2022disparse",
            "inproceedings",
            ("X. Sun", "A. Hassani", "Z. Wang", "G. Huang", "H. Shi"),
            "DiSparse: Disentangled Sparsification for Multitask Model Compression",
            "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
            2022,
        ),
        Reference(
            "xiang2024adapmtl",
            "inproceedings",
            ("M. Xiang", "S. J. Tang", "Q. Yang", "H. Guan", "T. Liu"),
            "AdapMTL: Adaptive Pruning Framework for Multitask Learning Model",
            "ACM International Conference on Multimedia",
            2024,
            "https://arxiv.org/abs/2408.03913",
        ),
    ),
    statements=(
        Statement("default", "Neither paper was read in full: rules are those of the released codes."),
        Statement("official code", "static: c_t = sum |dL_t / dm| over 50 batches, m a mask of ones, so |w dL_t / dw|; "
                  "each task keeps its largest, and a weight is pruned only if all tasks agree."),
        Statement("official code", "pretrained: w^2 sum |dL_t / dw| after a dense training (Taskonomy). NYUv2 and "
                  "Cityscapes rank by |w| (saliency: magnitude), where tasks differ only in their heads."),
        Statement("official code", "dynamic: Erdos-Renyi-kernel density (power .9), random masks; every 1/400 of the "
                  "steps up to .75: drop small weights (rate .5, falling as a cosine), then grow for each task, per "
                  "tensor, the largest sum |dL_t / dw| over the two halves of the batch; a last cut to the target."),
        Statement("official code", "soft_threshold (AdapMTL): sign(w) ReLU(|w| - sigmoid(s)), s from -30.5, Adam with "
                  "betas .5, .999, no gradient to s once the sparsity is reached. What moves s at first is its decay."),
        Statement("official code", "The released 90 % rows set keep by hand: .08, .095, .097 (static), .1, .13, .2."),
        Statement("default", "keep is solved so that the union has the density; the code keeps all ties, here the "
                  "lower index. layer_floor 1: every tensor keeps a weight."),
        Statement("default", "Only the backbone is pruned, since heads are equal for all rows; the codes prune heads "
                  "too, most of their weights. So no published row is comparable."),
        Statement("default", "Saliencies are of the weights that are trained; the code draws Xavier weights for them. "
                  "Batches are shuffled and not augmented; losses are unweighted; norm statistics are left alone."),
        Statement("default", "dynamic: pruned weights are 0, grown ones and their moments start at 0, gradients for "
                  "growth are taken at zeros; the code resumes stored values. The code leaves the first convolution "
                  "dense until the first change, at step 0. Densities are rounded so that the sum is exact."),
        Statement("default", "soft_threshold: one s for the backbone, none for heads; its rate takes it near 0 within "
                  "update_until of the steps (code: 1e-3). Its decay is 1 (code: 1e-4): where .1 was asked for, 200 "
                  "steps on multi_mnist kept .91 at 1e-4, .58 at .01, .21 at .1 and .09 at 1, as the losses hold it "
                  "back. Loss weights from a sliding window are left out."),
        Statement("default", "pretrained goes on with weights and heads of the dense network; reinit restarts."),
        Statement("default", "Controls: magnitude (one threshold after dense training) and random, at one density."),
        Statement("default", "Masks are unstructured: nothing is saved in memory or time without sparse kernels."),
    ),
)  # fmt: skip
