"""The arms of the comparison: each is a change of one configuration, never a copy of it."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sllmr.models.strict_config import StrictConfig

RENAMED_ARMS = {"gated_fused": "stacked", "gated_fused_text": "stacked_text"}
"""Old name of a built-in arm -> its name."""


class Arm(StrictConfig):
    """One arm: changes of the configuration that all arms have in common.

    Sections hold keys of that section; unknown ones are refused when the arm's configuration is composed.
    """

    RENAMED_KEYS: ClassVar = {
        "scored_share": "scored_fraction",
        "shuffled_scores": "scores: permuted",
        "permuted_scores": "scores: permuted",
    }
    RENAMED_VALUES: ClassVar = {"tuned_as": RENAMED_ARMS}

    model: dict[str, Any] = Field(default={}, description="changes of `model`")
    gate: dict[str, Any] = Field(default={}, description="changes of `gate`")
    loss: dict[str, Any] = Field(default={}, description="changes of `loss`")
    train: dict[str, Any] = Field(default={}, description="changes of `train`")
    text_features: bool = Field(default=False, description="the LLM scorer's item vectors are inputs of the model")
    late_fusion: bool = Field(
        default=False,
        description="scores of the arm none with the same seed, added to the LLM scorer's after a logistic fit on "
        "validation; needs the LLM scorer when serving, so it is a reference for the other arms, not a product",
    )
    scored_fraction: float = Field(
        default=1.0, gt=0, le=1, description="fraction of the scored contexts whose pairs are used, by hash"
    )
    scores: Literal["llm", "permuted", "constant"] = Field(
        default="llm",
        description="what the pairs carry: the LLM's scores; the same, permuted among all candidates; or 0.5 for every "
        "candidate, so that only the base model is left to distill. The last two are controls: what they gain does "
        "not come from the LLM",
    )
    permuted_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="scores: permuted: the fraction of the scores that are permuted, drawn at random; below 1 it "
        "makes a less accurate LLM of the same one",
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

    @model_validator(mode="after")
    def _permuted_fraction_has_permuted_scores(self) -> "Arm":
        if self.permuted_fraction < 1 and self.scores != "permuted":
            raise ValueError(
                f"permuted_fraction needs scores: permuted, got {self.permuted_fraction} with scores: {self.scores}; "
                "set scores: permuted or remove it"
            )
        return self

    @property
    def has_text_match(self) -> bool:
        """Whether the text match is an input of the model."""
        return bool(self.model.get("text_match"))


NONE = "none"
"""The arm that every other one is compared with."""

TEXT_FEATURES = "text_features"
"""The arm whose model has the item vectors as inputs and nothing else; like `none`, it is tuned for each backbone."""

TEXT_MATCH = "text_match"
"""The arm that adds the cosines between the candidate's vector and those of the history to text_features: what an
engineer would try before any LLM. It is tuned for each backbone."""

LATE_FUSION = "late_fusion"
"""The arm that needs the LLM scorer's score to serve: a reference for the other arms, not a product."""

# Its pairs carry a probability of every candidate, so more pairs per batch pay off.
_STACKED = Arm(
    gate={"mode": "stacked", "signals": ["history_brevity", "rarity"]},
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
    "stacked": _STACKED,
    "stacked_text": _STACKED.model_copy(update={"text_features": True, "tuned_as": "stacked"}),
    # Without compare: its model without pairs is that of text_match, so that the two show what the pairs do.
    "stacked_text_match": _STACKED.model_copy(
        update={"model": {"text_match": True}, "text_features": True, "train": {**_STACKED.train, "compare": False}}
    ),
    TEXT_FEATURES: Arm(loss={"llm_weight": 0.0}, text_features=True, tuned_as=NONE),
    TEXT_MATCH: Arm(loss={"llm_weight": 0.0}, model={"text_match": True}, text_features=True, tuned_as=NONE),
    LATE_FUSION: Arm(loss={"llm_weight": 0.0}, late_fusion=True, tuned_as=NONE),
}
"""By name. A configuration adds its own under `own_arms`."""
