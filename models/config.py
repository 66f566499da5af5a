"""Configuration of the ranking model, its gate, its losses and its training."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class ModelConfig(BaseModel):
    """The ranking model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(default="dcnv2", description="a name of models.backbones.BACKBONES")
    use_user_id: bool = Field(default=False, description="whether the user id is an input; it overfits short histories")
    embedding_dim: int = Field(default=64, ge=1, le=1024, description="width of every embedding vector")
    embedding_l2: float = Field(
        default=0.05,
        ge=0,
        description="weight of the squared norm of the distinct rows that a batch looks up, per example",
    )
    mlp: tuple[int, ...] = Field(
        default=(200, 80), min_length=1, description="widths of the hidden layers (all but autoint, which has none)"
    )
    dropout: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of hidden units (autoint: of attention weights) dropped in training",
    )
    cross_layers: int = Field(
        default=3, ge=1, le=16, description="depth of the cross network (dcn, dcnv2); the paper of dcn tries 1 to 11"
    )
    cin_widths: tuple[int, ...] = Field(
        default=(100, 100, 100),
        min_length=1,
        max_length=4,
        description="vectors in each layer of the compressed interaction network (xdeepfm); the paper takes 200 a "
        "layer on Criteo and 100 elsewhere, in up to 3 layers; at most 4, since its cost grows with the fields "
        "to the power of the layers plus 1",
    )
    attention_layers: int = Field(default=3, ge=1, le=16, description="interacting layers (autoint); 3 in the paper")
    attention_heads: int = Field(
        default=2, ge=1, le=64, description="attention heads in each interacting layer (autoint); 2 in the paper"
    )
    attention_head_dim: int = Field(
        default=32, ge=1, le=1024, description="width of one attention head (autoint); 32 in the paper"
    )
    activation_unit: tuple[int, ...] = Field(
        default=(36,),
        min_length=1,
        description="widths of the hidden layers that weigh a history position (din); one of 36 in the paper",
    )

    item_vectors_file: str | None = Field(
        default=None,
        description="an .npz of `item_id` and `vector`, say of the items' texts: the vectors join the inputs, "
        "projected to embedding_dim; None: no such input",
    )

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        from models.backbones import BACKBONES  # the backbones take this class as their argument

        if name not in BACKBONES:
            raise ValueError(f"model.backbone must be one of {sorted(BACKBONES)}, got {name!r}")
        return name

    @field_validator("mlp", "cin_widths", "activation_unit")
    @classmethod
    def _positive_widths(cls, widths: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if min(widths) < 1:
            raise ValueError(f"model.{info.field_name} must hold widths of at least 1, got {widths}; drop the others")
        return widths


FITTED_BEFOREHAND = ("advantage", "fused")
"""Modes of the gate that weigh the LLM against a first-stage model, see models/first_stage.py."""


class GateConfig(BaseModel):
    """The gate: how far the LLM's order of a pair is trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["frozen", "paper", "supervised", "advantage", "fused"] = Field(
        default="supervised", description="which loss fits alpha; see models/gate.py"
    )
    frozen_alpha: float = Field(default=1.0, ge=0, le=1, description="alpha of mode frozen; 1 is global regularisation")
    signals: tuple[str, ...] = Field(
        default=("short_history", "long_tail", "entropy"),
        min_length=1,
        description="z, the inputs of the gate: names of models.signals.SIGNALS",
    )
    cold_max_history: int = Field(
        default=3,
        ge=0,
        description="short_history is 1 up to this many earlier positives (the paper's tau_u - 1)",
    )
    held_out_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="of modes advantage and fused: share of the labelled contexts whose rows the first stage does not "
        "see and on which the gate is fitted",
    )
    weights_from: str | None = Field(
        default=None,
        description="of modes advantage and fused: a training.json of another run, say on another domain, whose gate "
        "is taken as it is; None: the gate is fitted here",
    )
    on_collapse: Literal["warn", "fail"] = Field(
        default="warn",
        description="what follows when alpha is near 0 or 1 everywhere, or inverted, against what the probes say; see "
        "models.reliability.collapse",
    )
    dropout_passes: int = Field(default=10, ge=2, le=100, description="of the signal dropout_variance")
    initial_bias: float = Field(default=0.0, description="b at the start; alpha starts at sigmoid(b)")
    learning_rate: float = Field(
        default=0.02,
        gt=0,
        description="of mode supervised; mode paper trains at train.learning_rate, as the paper does",
    )

    @field_validator("signals")
    @classmethod
    def _known_signals(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from models.signals import SIGNALS  # the signals take this class as their argument

        unknown = [name for name in names if name not in SIGNALS]
        if unknown:
            raise ValueError(f"gate.signals must be among {sorted(SIGNALS)}, got {unknown}")
        if len(set(names)) < len(names):
            raise ValueError(f"gate.signals must differ from each other, got {list(names)}; drop the repeated one")
        return names

    @model_validator(mode="after")
    def _weights_are_of_a_gate_that_is_fitted(self) -> "GateConfig":
        if self.weights_from is not None and self.mode not in FITTED_BEFOREHAND:
            raise ValueError(
                f"gate.weights_from needs gate.mode {' or '.join(FITTED_BEFOREHAND)}, got {self.mode}; set gate.mode, "
                "or remove gate.weights_from"
            )
        return self


class LossConfig(BaseModel):
    """L = L_rec + llm_weight * L_LLM.

    L_LLM by `form`, s the logit, y the LLM's score:
        pairwise: alpha * max(0, margin - (s_i - s_j)) where the LLM prefers i to j
        pointwise: (sigmoid(s) - y)^2 for both items of a pair
        distillation: cross-entropy of sigmoid(s) and sigmoid(a y + b), with a and b fitted on the labelled probes; with
            gate.mode fused, of sigmoid(s) and the fused probability
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm_weight: float = Field(default=0.1, ge=0, description="lambda; 0 trains without pairs (the arm `none`)")
    form: Literal["pairwise", "pointwise", "distillation"] = Field(
        default="pairwise",
        description="L_LLM, see above; the gate takes part in pairwise, and mode fused in distillation alone",
    )
    margin: float = Field(default=1.0, gt=0, description="m of the hinge, in logits")


class TrainConfig(BaseModel):
    """Batches, optimiser and stopping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=512, ge=1, description="rows a step")
    pairs_per_batch: int = Field(default=128, ge=1, description="preference pairs a step; each is two forward rows")
    epochs: int = Field(default=20, ge=1, description="most passes over the train rows")
    patience: int = Field(default=2, ge=1, description="epochs without a better validation AUC before training stops")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam")
    shuffle_buffer: int = Field(default=100_000, ge=1, description="rows held to shuffle from")
    seed: int = Field(default=17, ge=0, description="of initial weights, dropout and the order of rows and pairs")
