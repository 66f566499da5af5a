"""The paper's numbers, for comparison with the ablation's.

Source: "Selective LLM-Guided Regularization for Enhancing Recommendation Models", arXiv 2512.21526v1, Tables 2 and 3.
It states neither seeds nor intervals; one AUC on its test rows has a standard error of about .0015 to .0023.
"""

SLICES = ("overall", "cold", "tail")

BACKBONES = ("deepfm", "xdeepfm", "autoint", "dcn", "dcnv2", "din")

TABLE_2_ARMS = ("none", "distill", "kar", "llm_cf", "gated_paper")
"""The columns of Table 2: no LLM, KD, KAR, LLM-CF, S-LLMR. No arm of this project re-implements KAR or LLM-CF."""

TABLE_2: dict[str, dict[str, tuple[int, ...]]] = {
    "sports": {
        "deepfm": (7990, 8043, 7991, 8137, 8176),
        "xdeepfm": (8158, 8169, 8161, 8196, 8240),
        "autoint": (8003, 8012, 8039, 8088, 8161),
        "dcn": (8023, 8040, 8024, 8092, 8190),
        "dcnv2": (8110, 8112, 8087, 8131, 8150),
        "din": (7986, 8023, 7971, 8089, 8100),
    },
    "beauty": {
        "deepfm": (7853, 7959, 7870, 8044, 8101),
        "xdeepfm": (8065, 8104, 8101, 8113, 8183),
        "autoint": (7949, 7961, 7939, 8090, 8145),
        "dcn": (8146, 8147, 8165, 8182, 8189),
        "dcnv2": (8028, 8057, 8003, 8033, 8177),
        "din": (7861, 7934, 7861, 7967, 8010),
    },
    "toys": {
        "deepfm": (7681, 7713, 7698, 7881, 7961),
        "xdeepfm": (7836, 7865, 7898, 7947, 7985),
        "autoint": (7630, 7635, 7683, 7754, 7849),
        "dcn": (7621, 7652, 7651, 7702, 7960),
        "dcnv2": (7774, 7827, 7759, 7812, 7927),
        "din": (7586, 7652, 7620, 7783, 7829),
    },
}
"""AUC x 10^4 on all test rows: domain -> backbone -> one value for each of TABLE_2_ARMS."""

TABLE_3_BACKBONE = "dcnv2"

TABLE_3: dict[str, dict[str, tuple[int, ...]]] = {
    "sports": {
        "none": (8110, 8140, 7677),
        "global": (8114, 8140, 7640),
        "pointwise": (8069, 8119, 7571),
        "gated_paper": (8150, 8170, 7877),
    },
    "beauty": {
        "none": (8028, 8006, 7702),
        "global": (7911, 7797, 7330),
        "pointwise": (7999, 7922, 7445),
        "gated_paper": (8177, 8063, 7716),
    },
    "toys": {
        "none": (7774, 7868, 7402),
        "global": (7887, 7858, 7390),
        "pointwise": (7705, 7671, 7391),
        "gated_paper": (7927, 7917, 7502),
    },
}
"""AUC x 10^4 of TABLE_3_BACKBONE: domain -> arm -> one value for each of SLICES."""


def paper_auc(domain: str, backbone: str, arm: str, slice_name: str) -> float | None:
    """The paper's AUC, in [0, 1], by this project's names; None where the paper prints none.

    `domain` matches in any case. `distill` is the paper's KD, `gated_paper` its S-LLMR ("gated pairwise").
    """
    by_backbone = TABLE_2.get(domain.lower(), {})
    if slice_name == "overall" and backbone in by_backbone and arm in TABLE_2_ARMS:
        return by_backbone[backbone][TABLE_2_ARMS.index(arm)] / 10_000
    by_arm = TABLE_3.get(domain.lower(), {})
    if backbone == TABLE_3_BACKBONE and arm in by_arm and slice_name in SLICES:
        return by_arm[arm][SLICES.index(slice_name)] / 10_000
    return None
