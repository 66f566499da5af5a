"""The report of a training, stored as training.json."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmr.models.reliability import ReliabilityCell


class Epoch(BaseModel):
    """Figures of one epoch of training.

    Attributes:
        valid_auc: on all validation rows.
        losses: by name, the mean over the epoch's steps of each part of the loss, and of alpha.
        seconds: of training alone, without validation.
        rows_per_second: train rows over `seconds`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid_auc: float
    losses: dict[str, float]
    seconds: float
    rows_per_second: float


class GateCell(BaseModel):
    """One cell of pairs by history length and popularity, or all pairs.

    Attributes:
        short_history: whether the history is at most gate.short_history_max long; None in the cell of all pairs.
        tail: whether either item is a long-tail item; None in the cell of all pairs.
        pairs: number of pairs.
        mean_alpha: over these pairs; None if there are none.
        calibration_pairs: number of pairs whose right order is known.
        llm_accuracy: fraction of the calibration pairs where the LLM prefers the target item; None without such pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_history: bool | None
    tail: bool | None
    pairs: int
    mean_alpha: float | None
    calibration_pairs: int
    llm_accuracy: float | None


class ContestedPair(BaseModel):
    """A pair on which the gate lets the LLM contradict the model.

    Attributes:
        history_item_ids: latest first.
        preferred_item_id: the item that the LLM scores higher.
        other_item_id: the item that the LLM scores lower and the model scores higher.
        model_margin: logit of the preferred item minus that of the other, below 0; of the base model if there is one.
        alpha: of the pair.
        calibration_label: 1 if the preferred item is the target item, 0 if the other item is, NOT_CALIBRATION if the
            right order is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_item_ids: list[str]
    preferred_item_id: str
    other_item_id: str
    model_margin: float
    alpha: float
    calibration_label: int


class WarmStart(BaseModel):
    """How a training started.

    Attributes:
        model: folder of the earlier model; None for a cold start.
        cold_because: why no earlier model was taken, as a clause; None for a warm start.
        copied: by vocabulary, number of values whose vector was taken from the earlier model.
        new: by vocabulary, number of values that the earlier model did not know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    cold_because: str | None = None
    copied: dict[str, int] = {}
    new: dict[str, int] = {}

    def sentence(self) -> str:
        """One line for the terminal."""
        if self.cold_because is not None:
            return f"cold start: {self.cold_because}"
        parts = [f"{n} of {n + self.new[name]} {name}" for name, n in self.copied.items()]
        return f"warm start from {self.model}: vectors of {', '.join(parts)}, and all other weights"


class TrainingReport(BaseModel):
    """What a training did; the content of `training.json`.

    Attributes:
        schema_version: of this layout.
        warm_start: what the weights started from; None without train.warm_start.
        epochs: in order.
        best_epoch: 1-based; the model has its weights, unless the model without pairs is taken.
        best_valid_auc: of the model.
        train_rows: rows of one epoch.
        llm_weight: lambda of the training; below loss.llm_weight if there are few pairs, see
            models.training.recipe.with_weight_for. None in reports of earlier versions.
        seconds: of everything.
        gate: all pairs, then the four cells; empty without pairs.
        gate_weights: w by signal and `bias`; empty for a gate without parameters.
        alpha_quantiles: of alpha over all pairs, by fraction; empty without a gate.
        alpha_collapse: `closed`, `open` or `inverted`, see models.reliability.collapse; None for a sound gate and for a
            frozen one.
        alpha_by_epoch: the same quantiles of alpha at the end of each epoch; empty for a gate that is constant.
        reliability: by cell of history length x popularity, see models.reliability; empty without a gate.
        calibration_error: of the gate as a probability: of alpha that the LLM is right (modes paper and supervised), of
            the stacked probability of the item, on users that took no part in its fit (mode stacked); None for the
            other modes, whose alpha is not a probability.
        contested_pairs: pairs with the largest alpha times -model_margin, on which the gate opposes the model most;
            empty without a gate or without item ids.
        base_model: epochs of the model that the gate was fitted on; empty without one.
        base_model_valid_auc: of its best epoch.
        valid_auc_without_pairs: of the same training without pairs, which a gate that is fitted beforehand takes in
            addition; its model is taken if its AUC is at least as high. None without such a training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    warm_start: WarmStart | None = None
    epochs: list[Epoch]
    best_epoch: int
    best_valid_auc: float
    train_rows: int
    llm_weight: float | None = None
    seconds: float
    gate: list[GateCell] = []
    gate_weights: dict[str, float] = {}
    alpha_quantiles: dict[str, float] = {}
    alpha_collapse: str | None = None
    alpha_by_epoch: list[dict[str, float]] = []
    reliability: list[ReliabilityCell] = []
    calibration_error: float | None = None
    contested_pairs: list[ContestedPair] = []
    base_model: list[Epoch] = []
    base_model_valid_auc: float | None = None
    valid_auc_without_pairs: float | None = None
