"""The arms of the comparison: each is a change of one configuration, never a copy of it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Arm(BaseModel):
    """What makes an arm, laid over the configuration that all arms share.

    Sections hold keys of that section; unknown ones are refused when the arm's configuration is composed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, Any] = Field(default={}, description="changes of `model`")
    gate: dict[str, Any] = Field(default={}, description="changes of `gate`")
    loss: dict[str, Any] = Field(default={}, description="changes of `loss`")
    train: dict[str, Any] = Field(default={}, description="changes of `train`")
    text_features: bool = Field(default=False, description="the teacher's item vectors are inputs of the model")
    late_fusion: bool = Field(
        default=False,
        description="scores of the arm none with the same seed, added to the teacher's after a logistic fit on "
        "validation; asks the teacher when serving, so it is no product, but the bar that the others are held to",
    )
    scored_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the scored contexts whose pairs are used, by hash"
    )
    shuffled_scores: bool = Field(
        default=False,
        description="the scores are dealt anew among all candidates: a control, as nothing that the arm then gains is "
        "the LLM's doing",
    )
    backbones: tuple[str, ...] | None = Field(
        default=None, description="of the matrix, those that the arm is trained on; None: all"
    )
    gate_from: str | None = Field(
        default=None,
        pattern=r"^[^/]+/[^/]+$",
        description="`domain/arm`: the gate of that cell with the same backbone and seed is taken as it is; for modes "
        "that are fitted beforehand",
    )
    tuned_as: str | None = Field(
        default=None,
        description="arm whose tuned values this one takes on top of its backbone's, `none` for nothing on top; "
        "its own where empty",
    )


NONE = "none"
"""The arm that every other one is compared with."""

TEXT_FEATURES = "text_features"
"""The arm whose model has the item vectors as inputs, and no more: it is tuned for each backbone, as none is."""

LATE_FUSION = "late_fusion"
"""The arm that needs the teacher's score to serve: the bar that the others are held to."""

# Its pairs tell a probability of every candidate, so that more of them pay off.
_FUSED = Arm(
    gate={"mode": "fused", "signals": ["history_brevity", "rarity"]},
    loss={"form": "distillation"},
    train={"pairs_per_batch": 256},
)

ARMS: dict[str, Arm] = {
    NONE: Arm(loss={"llm_weight": 0.0}),
    "distill": Arm(loss={"form": "distillation"}),
    "global": Arm(gate={"mode": "frozen", "frozen_alpha": 1.0}),
    "pointwise": Arm(loss={"form": "pointwise"}),
    "gated_paper": Arm(gate={"mode": "paper"}),
    "gated_supervised": Arm(gate={"mode": "supervised"}),
    "gated_advantage": Arm(gate={"mode": "advantage"}),
    "gated_fused": _FUSED,
    "gated_fused_text": _FUSED.model_copy(update={"text_features": True, "tuned_as": "gated_fused"}),
    TEXT_FEATURES: Arm(loss={"llm_weight": 0.0}, text_features=True, tuned_as=NONE),
    LATE_FUSION: Arm(loss={"llm_weight": 0.0}, late_fusion=True, tuned_as=NONE),
}
"""By name. A configuration adds its own under `own_arms`."""
