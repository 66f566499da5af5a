"""Defaults of a run: the design that won on validation rows (docs/results.md).

The classes of the sections default to the paper's design, which the arms of the ablation change. A run defaults to
gate.mode stacked, with the loss, pairs and candidates that suit it; a file that sets another mode gets the paper's.
"""

from typing import Any

STACKED = "stacked"

_SIMILAR = 5

_LLM_WEIGHT, _LLM_WEIGHT_WITH_TEXT_MATCH = 10.0, 3.0
"""By validation rows of Amazon Beauty (configs/amazon-tuned.yaml): a model that sees the text match has less to learn
from pairs.
"""

OF_MODEL: dict[str, dict[str, Any]] = {
    "model": {"embedding_dim": 32, "embedding_l2": 0.02, "dropout": 0.0},
    "train": {"learning_rate": 0.002, "patience": 3, "pairs_per_batch": 256},
}
"""By section, whatever the gate: the model without pairs depends on nothing of the LLM."""

GATE_OF_STACKED: dict[str, Any] = {"mode": STACKED, "signals": ["history_brevity", "rarity"]}

CANDIDATES_OF_STACKED: dict[str, Any] = {
    "contexts": "latest",
    "calibration_fraction": 0.35,
    "calibration_negatives": "uniform",
    "negatives_per_target": 2,
    "tail_per_context": 1,
    "popularity_pool": 20_000,
    "short_history_max": 1,
    "short_history_fraction": 0.1,
    "tail_target_fraction": 0.0,
}
"""Of `llm.candidates`: negatives like those of the rows, target items as frequent as in the rows, and candidates near
the history (similar_per_context), where an LLM has most to contribute."""


def with_defaults(values: Any) -> Any:
    """The values of a file with those that it leaves out; sections that are no mappings are left to validation."""
    if not isinstance(values, dict):
        return values
    result = dict(values)
    for section, defaults in OF_MODEL.items():
        _lay(result, section, defaults)
    vectors = values.get("item_vectors", {})
    source = vectors.get("source") if isinstance(vectors, dict) else getattr(vectors, "source", None)
    has_vectors = source != "none"
    _lay(result, "model", {"item_vectors": has_vectors})
    if isinstance(result["model"], dict):
        _lay(result, "model", {"text_match": result["model"]["item_vectors"]})
    loss, gate = values.get("loss", {}), values.get("gate", {})
    if not (isinstance(loss, dict) and isinstance(gate, dict)):
        return result
    form = loss.get("form", "distillation")
    if gate.get("mode", STACKED) != STACKED or form == "pointwise":  # such a gate has no part in a pointwise loss
        return result
    _lay(result, "gate", GATE_OF_STACKED)
    _lay(result, "loss", {"form": form})
    if form == "distillation":
        model = result["model"]
        has_match = isinstance(model, dict) and model.get("text_match")
        _lay(result, "loss", {"llm_weight": _LLM_WEIGHT_WITH_TEXT_MATCH if has_match else _LLM_WEIGHT})
    if form == "distillation":
        _lay(result, "pairs", {"selection": "cover"})
    llm = values.get("llm", {})
    candidates = llm.get("candidates", {}) if isinstance(llm, dict) else None
    if isinstance(candidates, dict):
        laid = {**CANDIDATES_OF_STACKED, **candidates}
        result["llm"] = {**llm, "candidates": {"similar_per_context": _room(laid), **laid}}
    return result


def _lay(values: dict[str, Any], section: str, defaults: dict[str, Any]) -> None:
    """Puts defaults under the keys of a section; keys that the file sets stand."""
    if isinstance(given := values.get(section, {}), dict):
        values[section] = {**defaults, **given}


def _room(candidates: dict[str, Any]) -> int:
    """How many candidates near the history fit into a context."""
    taken = [candidates.get("per_context", 10), candidates["negatives_per_target"], candidates["tail_per_context"]]
    if not all(isinstance(number, int) for number in taken):
        return 0  # validation refuses them
    per_context, negatives, tail = taken
    return max(0, min(_SIMILAR, per_context - 1 - negatives - tail))
