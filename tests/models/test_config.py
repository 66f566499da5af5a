import pytest
from pydantic import ValidationError

from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig


@pytest.mark.parametrize("config", [ModelConfig, GateConfig, LossConfig, TrainConfig])
def test_a_configuration_survives_json(config):
    assert config.model_validate_json(config().model_dump_json()) == config()


@pytest.mark.parametrize("config", [ModelConfig, GateConfig, LossConfig, TrainConfig])
def test_every_field_is_described(config):
    assert all(field.description for field in config.model_fields.values())


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (ModelConfig, {"backbone": "dcnv3"}, "'dcnv2'.*input_value='dcnv3'"),
        (ModelConfig, {"mlp": (200, 0)}, "model.mlp must hold widths of at least 1, got"),
        (ModelConfig, {"cin_widths": (0,)}, "model.cin_widths must hold widths of at least 1, got"),
        (ModelConfig, {"activation_unit": (36, -1)}, "model.activation_unit must hold widths of at least 1, got"),
        (ModelConfig, {"attention_heads": 0}, "greater than or equal to 1"),
        (ModelConfig, {"mlp": ()}, "at least 1 item"),
        (ModelConfig, {"dropout": 1.0}, "less than 1"),
        (ModelConfig, {"embeding_dim": 8}, "Extra inputs"),
        (GateConfig, {"signals": ("short_history", "moon_phase")}, "'entropy'.*input_value='moon_phase'"),
        (GateConfig, {"signals": ("entropy", "entropy")}, "differ from each other"),
        (GateConfig, {"mode": "open"}, "'frozen', 'paper', 'supervised', 'advantage' or 'stacked'"),
        (GateConfig, {"frozen_alpha": 1.5}, "less than or equal to 1"),
        (GateConfig, {"held_out_fraction": 0.0}, "greater than 0"),
        (GateConfig, {"mode": "fused"}, "gate.mode: fused was renamed; write gate.mode: stacked"),
        (GateConfig, {"held_out_share": 0.3}, "gate.held_out_share was renamed; write gate.held_out_fraction"),
        (GateConfig, {"cold_max_history": 3}, "gate.cold_max_history was renamed; write gate.short_history_max"),
        (GateConfig, {"dropout_passes": 10}, "gate.dropout_passes was renamed; write gate.dropout_samples"),
        (GateConfig, {"on_collapse": "ignore"}, "'warn' or 'fail'"),
        (GateConfig, {"weights_from": "t.json"}, "weights_from needs gate.mode advantage or stacked, got supervised"),
        (GateConfig, {"dropout_samples": 1}, "greater than or equal to 2"),
        (LossConfig, {"llm_weight": -0.1}, "greater than or equal to 0"),
        (LossConfig, {"margin": 0.0}, "greater than 0"),
        (TrainConfig, {"epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_refused_by_rule(config, values, message):
    with pytest.raises(ValidationError, match=message):
        config(**values)
