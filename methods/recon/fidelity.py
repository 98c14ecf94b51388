"""Where each part of Recon comes from; `list recon` prints it."""

from __future__ import annotations

from methods.contracts import Fidelity, Reference, Statement

FIDELITY = Fidelity(
    citation="G. Shi, Q. Li, W. Zhang, J. Chen, X.-M. Wu, Recon: Reducing Conflicting Gradients from the Root for "
    "Multi-Task Learning, ICLR 2023",
    link="https://arxiv.org/abs/2302.11289",
    references=(
        Reference(
            "shi2023recon",
            "inproceedings",
            ("G. Shi", "Q. Li", "W. Zhang", "J. Chen", "X.-M. Wu"),
            "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning",
            "International Conference on Learning Representations",
            2023,
            "https://arxiv.org/abs/2302.11289",
        ),
    ),
    statements=(
        Statement("paper", "s^k counts pairs of tasks whose gradients of layer k have a cosine below S, -1 < S <= 0, "
                  "over the first quarter of joint training; the K layers of highest score get a copy per task, and "
                  "the network is trained from scratch."),
        Statement("official code", "A layer is a module that owns parameters, weight and bias as one vector; norms are "
                  "layers of their own. Cosines are compared strictly, each pair once; ties keep the order of the "
                  "network (a stable sort)."),
        Statement("paper", "severity -.02: NYUv2 and PASCAL-Context; 0 CityScapes, -.05 CelebA, -.1 "
                  "Multi-Fashion+MNIST."),
        Statement("derived", "top_k .6 is the 25 of 41 layers of ResNet-18. The paper takes 39 of 52 of SegNet (its "
                  "code 40) and 22 of 72 of MTAN (15)."),
        Statement("paper", "Copies start equal (4.2); the code initialises each anew."),
        Statement("paper", "On Multi-Fashion+MNIST conflicts were counted under CAGrad for 30 epochs (its code: plain "
                  "joint training for 40). Here the search is plain joint training whatever balances the losses; that "
                  "acts in the final training."),
        Statement("paper", "Controls: as many random layers (RSL, select: random_layers), random layers of as many "
                  "parameters (RSP, random_parameters), the first and the last K."),
        Statement("default", "random_parameters runs the search for its size; of 1,000 random orders, each cut where "
                  "the parameters are nearest, it takes the nearest in parameters and MACs."),
        Statement("default", "The score is a rate: conflicts / pairs whose losses both have a valid label. Losses and "
                  "gradients of the search are float32 whatever the precision of the cell. The T further backward "
                  "passes of a step are in the record's train_macs."),
        Statement("derived", "Task weights change no cosine, so scores are those of unweighted losses."),
        Statement("derived", "A negative S favours small layers: random gradients of d elements fall below it with "
                  "probability Phi(S sqrt(d)), at S = -.1 .129 for d = 128, 0 for d = 36,864. score: excess "
                  "subtracts it; both scores are in the record."),
        Statement("default", "granularity: block copies stem, blocks or tail whole. budget takes the place of top_k: "
                  "layers in order of score up to the first whose copies no longer fit."),
        Statement("default", "Position embeddings, class token, LayerScale and tables of biases are in the layer of "
                  "the module that owns them. The source has no transformer."),
        Statement("default", "A part without a selected layer on equal inputs is computed once; from the first part "
                  "with one on, a pass for every task. The paper counts parameters only."),
        Statement("default", "Norm statistics belong to each task's nodes; the code feeds a norm that was not selected "
                  "T times and mixes them."),
        Statement("official code", "Where one shared shortcut meets the outputs of T tasks, the code hands it to the "
                  "first task alone; here every task receives it."),
        Statement("default", "Copies learn at the backbone's rate and count as added parameters. On multi-domain data "
                  "gradients of different images are compared: a noisier score."),
        Statement("default", "One task has no pair: the search is left out and the network is the plain one."),
    ),
)  # fmt: skip
