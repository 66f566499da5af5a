"""Configuration of the ranking model, its gate, its losses and its training."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sllmr.models.strict_config import StrictConfig

BackboneName = Literal["deepfm", "xdeepfm", "autoint", "dcn", "dcnv2", "din"]
"""The keys of models.backbones.BACKBONES, repeated since that module loads TensorFlow. A test compares the two."""

SignalName = Literal[
    "short_history",
    "long_tail",
    "confidence",
    "entropy",
    "dropout_variance",
    "history_brevity",
    "rarity",
    "text_richness",
    "llm_gap",
    "llm_consistency",
]
"""The keys of models.signals.SIGNALS, repeated for the same reason."""


MixedPrecision = Literal["bfloat16"]


class ModelConfig(StrictConfig):
    """The ranking model."""

    SECTION: ClassVar = "model"
    MOVED_KEYS: ClassVar = {
        "item_vectors_file": "item_vectors: {source: file, file: ...} and model: {item_vectors: true}"
    }

    backbone: BackboneName = Field(default="dcnv2", description="the network behind the embeddings")
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
        description="fraction of hidden units (autoint: of attention weights) dropped in training",
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

    item_vectors: bool = Field(
        default=False,
        description="whether the items' vectors, see item_vectors.source, are inputs, projected to embedding_dim",
    )

    text_match: bool = Field(
        default=False,
        description="whether the cosines of the candidate's item vector and those of the last ten items of the history "
        "(the best, its square, the mean) are an input; needs item vectors, see models/text_match.py",
    )

    @field_validator("mlp", "cin_widths", "activation_unit")
    @classmethod
    def _positive_widths(cls, widths: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if min(widths) < 1:
            raise ValueError(f"model.{info.field_name} must hold widths of at least 1, got {widths}; drop the others")
        return widths

    @model_validator(mode="after")
    def _text_match_has_vectors(self) -> "ModelConfig":
        if self.text_match and not self.item_vectors:
            raise ValueError(
                "model.text_match needs item vectors, got none; set model.item_vectors: true, or model.text_match: "
                "false"
            )
        return self


FITTED_BEFOREHAND = ("advantage", "stacked")
"""Modes of the gate that weigh the LLM against a base model, see models/base_model.py."""


class GateConfig(StrictConfig):
    """The gate: how far the LLM's order of a pair is trusted."""

    SECTION: ClassVar = "gate"
    RENAMED_KEYS: ClassVar = {
        "cold_max_history": "short_history_max",
        "held_out_share": "held_out_fraction",
        "dropout_passes": "dropout_samples",
    }
    RENAMED_VALUES: ClassVar = {"mode": {"fused": "stacked"}}

    mode: Literal["frozen", "paper", "supervised", "advantage", "stacked"] = Field(
        default="supervised", description="which loss fits alpha; see models/gate.py"
    )
    frozen_alpha: float = Field(default=1.0, ge=0, le=1, description="alpha of mode frozen; 1 is global regularization")
    signals: tuple[SignalName, ...] = Field(
        default=("short_history", "long_tail", "entropy"),
        min_length=1,
        description="z, the inputs of the gate, see models/signals.py",
    )
    short_history_max: int = Field(
        default=3,
        ge=0,
        description="short_history is 1 up to this many earlier positives (the paper's tau_u - 1)",
    )
    held_out_fraction: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="of modes advantage and stacked: fraction of the users with calibration pairs that the base model "
        "sees no row of and on which the gate is fitted; at least 30 users",
    )
    weights_from: str | None = Field(
        default=None,
        description="of modes advantage and stacked: a training.json of another run, say on another domain, whose gate "
        "is taken as it is; None: the gate is fitted here",
    )
    on_collapse: Literal["warn", "fail"] = Field(
        default="warn",
        description="what happens if alpha is near 0 or 1 everywhere, or inverted, and the calibration pairs "
        "contradict it; see models.reliability.collapse",
    )
    dropout_samples: int = Field(default=10, ge=2, le=100, description="of the signal dropout_variance")
    initial_bias: float = Field(default=0.0, description="b at the start; alpha starts at sigmoid(b)")
    learning_rate: float = Field(
        default=0.02,
        gt=0,
        description="of mode supervised; mode paper trains at train.learning_rate, as the paper does",
    )

    @field_validator("signals")
    @classmethod
    def _signals_differ(cls, names: tuple[SignalName, ...]) -> tuple[SignalName, ...]:
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
        distillation: cross-entropy of sigmoid(s) and sigmoid(a y + b), with a and b fitted on the calibration pairs;
            with gate.mode stacked, of sigmoid(s) and the stacked probability
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm_weight: float = Field(default=0.1, ge=0, description="lambda; 0 trains without pairs (the arm `none`)")
    form: Literal["pairwise", "pointwise", "distillation"] = Field(
        default="pairwise",
        description="L_LLM, see above; the gate takes part in pairwise, and mode stacked in distillation alone",
    )
    margin: float = Field(default=1.0, gt=0, description="m of the hinge, in logits")


class TrainConfig(BaseModel):
    """Batches, optimizer and stopping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=512, ge=1, description="rows a step")
    pairs_per_batch: int = Field(default=128, ge=1, description="preference pairs a step; each is two forward rows")
    epochs: int = Field(default=20, ge=1, description="most epochs")
    patience: int = Field(default=2, ge=1, description="epochs without a better validation AUC before training stops")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam")
    item_dropout: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="fraction of the item ids, of candidates and in histories, that training replaces by the unknown "
        "item, so that a new item gets a score from its categories, brand and vector; above 0, items that no "
        "train row and no pair prefers always count as unknown",
    )
    shuffle_buffer: int = Field(default=100_000, ge=1, description="rows held to shuffle from")
    seed: int = Field(default=17, ge=0, description="of initial weights, dropout and the order of rows and pairs")
    strategy: Literal["mirrored"] | None = Field(
        default=None,
        description="mirrored: each batch is split among all GPUs of the machine (without any, among its CPU devices), "
        "with the losses of the whole batch; None: one device trains",
    )
    mixed_precision: MixedPrecision | None = Field(
        default=None,
        description="in which the hidden layers of the backbone compute while it is trained; variables, embeddings, "
        "logits, losses, and the exported model are float32. None: everything is float32",
    )
    warm_start: bool = Field(
        default=False,
        description="start from the weights of the last blessed run whose training ended before the validation rows "
        "begin, the models with and without pairs each from its own; rows of embedding tables are matched by id or "
        "value. Without such a run, or with models of another shape, the training starts cold and says why. Needs "
        "data.split.strategy global_date",
    )
    compare: bool = Field(
        default=True,
        description="with an LLM: also train the same model without pairs, report the difference on the test rows, and "
        "take the better one by validation rows; false trains and takes the model with pairs alone",
    )
    compare_vectors: bool = Field(
        default=False,
        description="also train the same model on pairs that the item vectors score, without a request, and report "
        "what it gains beside the LLM's verdict; that model is not pushed",
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _range_of_float32(cls, precision: object) -> object:
        if precision == "float16":
            raise ValueError(
                "train.mixed_precision must be bfloat16, got float16, whose range needs a loss scale; write bfloat16"
            )
        return precision
