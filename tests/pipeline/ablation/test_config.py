import pathlib

import pytest
import yaml

from sllmr.pipeline.ablation.arms import ARMS
from sllmr.pipeline.ablation.config import load_ablation
from sllmr.pipeline.config import ConfigError, load_config

MATRIX = {
    "domains": {
        "shop": {
            "data": {"interactions": "i.csv", "items": "t.csv"},
            "item_vectors": {"source": "file", "file": "v.npz"},
        }
    },
    "shared": {"llm": {"strategy": "embedding"}, "model": {"embedding_dim": 8}, "train": {"patience": 1}},
    "backbones": ["dcn", "din"],
    "seeds": [4, 5],
}


def write(directory: pathlib.Path, **changes) -> pathlib.Path:
    file = directory / "matrix.yaml"
    file.write_text(yaml.safe_dump(MATRIX | changes))
    return file


def test_every_arm_is_the_shared_configuration_with_its_own_changes_and_nothing_else(tmp_path):
    ablation = load_ablation(write(tmp_path))
    cells = {arm: ablation.cell("shop", "din", arm, 5) for arm in ARMS}

    for cell in cells.values():
        assert cell.model.backbone == "din"
        assert cell.model.embedding_dim == 8
        assert cell.train.seed == 5
        assert cell.train.patience == 1
        assert cell.data.interactions == str(tmp_path / "i.csv")
    without_llm = {"none", "text_features", "text_match", "late_fusion"}
    assert {arm for arm, cell in cells.items() if cell.loss.llm_weight == 0} == without_llm
    assert cells["global"].gate.mode == "frozen"
    assert cells["global"].gate.frozen_alpha == 1.0
    assert cells["gated_paper"].gate.mode == "paper"
    assert cells["pointwise"].loss.form == "pointwise"
    assert cells["distill"].loss.form == "distillation"
    assert cells["stacked"].gate.mode == cells["stacked_text"].gate.mode == "stacked"
    assert cells["stacked_text"].loss == cells["stacked"].loss
    match_arms = {"stacked_text_match", "text_match"}
    with_vectors = {arm for arm, cell in cells.items() if cell.model.item_vectors}
    assert with_vectors == {"stacked_text", "text_features", *match_arms}
    assert {cell.item_vectors.file for cell in cells.values()} == {str(tmp_path / "v.npz")}
    assert {arm for arm, cell in cells.items() if cell.model.text_match} == match_arms
    assert cells["stacked_text_match"].loss == cells["stacked"].loss


def test_tuned_values_of_the_backbone_come_first_and_those_of_the_arm_on_top(tmp_path):
    tuned = {
        "backbones": {"dcn": {"model": {"dropout": 0.4}, "train": {"learning_rate": 0.002}}},
        "arms": {"global": {"loss": {"llm_weight": 0.3}, "train": {"learning_rate": 0.003}}},
    }
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    ablation = load_ablation(write(tmp_path, tuned="tuned.yaml", arms=["none", "global", "late_fusion"]))

    none, other, asked = (
        ablation.cell("shop", backbone, arm, 4)
        for backbone, arm in (("dcn", "none"), ("din", "none"), ("dcn", "global"))
    )
    assert (none.model.dropout, none.train.learning_rate, none.loss.llm_weight) == (0.4, 0.002, 0)
    assert other.model.dropout == 0.2
    assert (asked.model.dropout, asked.train.learning_rate, asked.loss.llm_weight) == (0.4, 0.003, 0.3)
    assert ablation.cell("shop", "dcn", "late_fusion", 4).model == none.model


def test_arms_with_item_vectors_stand_on_what_was_tuned_with_them(tmp_path):
    tuned = {
        "backbones": {"dcn": {"model": {"dropout": 0.4}}},
        "text_backbones": {"dcn": {"model": {"dropout": 0.1}}},
        "match_backbones": {"dcn": {"model": {"dropout": 0.3}}},
        "arms": {"stacked": {"loss": {"llm_weight": 7.0}}, "stacked_text_match": {"loss": {"llm_weight": 2.0}}},
    }
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    ablation = load_ablation(write(tmp_path, tuned="tuned.yaml"))

    dropout = {arm: ablation.cell("shop", "dcn", arm, 4).model.dropout for arm in ARMS}
    assert {arm for arm, value in dropout.items() if value == 0.1} == {"text_features", "stacked_text"}
    assert {arm for arm, value in dropout.items() if value == 0.3} == {"text_match", "stacked_text_match"}
    assert {value for arm, value in dropout.items() if ARMS[arm].text_features is False} == {0.4}
    assert ablation.cell("shop", "dcn", "stacked_text_match", 4).loss.llm_weight == 2.0
    assert ablation.cell("shop", "dcn", "stacked_text", 4).loss.llm_weight == 7.0


def test_tuned_values_that_know_no_arm_with_item_vectors_are_refused_where_one_is_asked_for(tmp_path):
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump({"backbones": {"dcn": {"model": {"dropout": 0.4}}}}))
    with pytest.raises(ConfigError, match=r"tuned must hold text_backbones of dcn, .* with sllmr ablate --tune"):
        load_ablation(write(tmp_path, tuned="tuned.yaml"))
    load_ablation(write(tmp_path, tuned="tuned.yaml", arms=["none", "global"]))


def test_an_own_arm_is_a_configuration_entry(tmp_path):
    own = {"half": {"gate": {"mode": "frozen", "frozen_alpha": 0.5}, "scored_fraction": 0.1, "tuned_as": "global"}}
    ablation = load_ablation(write(tmp_path, own_arms=own, arms=["none", "half"]))

    assert ablation.cell("shop", "dcn", "half", 4).gate.frozen_alpha == 0.5
    assert ablation.config.arm("half").scored_fraction == 0.1


def test_arms_and_domains_may_be_kept_to_some_backbones_and_domains_to_some_arms(tmp_path):
    own = {"half": {"scored_fraction": 0.5, "backbones": ["din"]}}
    shop = MATRIX["domains"]["shop"]
    domains = {"shop": shop, "stall": {**shop, "backbones": ["din"]}, "stand": {**shop, "arms": ["global"]}}
    matrix = load_ablation(write(tmp_path, own_arms=own, arms=["half", "none", "global"], domains=domains)).config

    assert matrix.arms_of("shop", "din") == ["none", "half", "global"]
    assert matrix.arms_of("shop", "dcn") == ["none", "global"]
    assert matrix.arms_of("stall", "dcn") == []
    assert matrix.arms_of("stall", "din") == ["none", "half", "global"]
    assert matrix.arms_of("stand", "din") == ["none", "global"]


def test_the_paths_of_an_arm_are_relative_to_the_file_as_well_and_stay_out_of_the_results(tmp_path):
    gate = {"mode": "stacked", "weights_from": "runs/training.json"}
    own = {"taken": {"gate": gate, "loss": {"form": "distillation"}}}
    ablation = load_ablation(write(tmp_path, own_arms=own, arms=["none", "taken"]))
    cell = ablation.cell("shop", "dcn", "taken", 4)

    assert cell.gate.weights_from == str(tmp_path / "runs" / "training.json")
    assert ablation.hyperparameters(cell)["gate"]["weights_from"] == "training.json"


def test_an_own_arm_like_a_built_in_one_has_its_keys_but_for_the_changes(tmp_path):
    own = {
        "wide": {"like": "stacked", "loss": {"llm_weight": 2.0}},
        "stopped": {"like": "stacked_text", "text_features": False, "scored_fraction": 0.5},
    }
    config = load_ablation(write(tmp_path, own_arms=own, arms=["none", "wide", "stopped"])).config
    built_in = ARMS["stacked"]
    wide, stopped = config.arm("wide"), config.arm("stopped")
    assert wide.gate == built_in.gate
    assert wide.train == built_in.train
    assert wide.loss == {"form": "distillation", "llm_weight": 2.0}
    # Tuned as the arm that it is like, or as that one is itself.
    assert (wide.tuned_as, stopped.tuned_as) == ("stacked", "stacked")
    assert stopped.model_copy(update={"scored_fraction": 1.0, "tuned_as": None}) == built_in


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["global"]}, r"arms must hold none, which all others are compared with, got global"),
        ({"arms": ["none", "glbal"]}, r"arms must be among .*global.*, got glbal"),
        ({"backbones": ["dcn", "dcn"]}, r"backbones must differ from each other, got dcn, dcn"),
        ({"seeds": [1, 1]}, r"seeds must differ from each other, got \[1, 1\]"),
        ({"arms": ["none", "gated_fused"]}, r"arms: the arm gated_fused was renamed; write stacked$"),
        (
            {"domains": {"shop": {**MATRIX["domains"]["shop"], "arms": ["gated_fused_text"]}}},
            r"domains.shop.arms: the arm gated_fused_text was renamed; write stacked_text",
        ),
        (
            {"own_arms": {"x": {"like": "gated_fused"}}},
            r"own_arms.x.like: the arm gated_fused was renamed; write stacked$",
        ),
        (
            {"own_arms": {"x": {"gate_from": "shop/gated_fused"}}},
            r"own_arms.x.gate_from: the arm gated_fused was renamed; write stacked$",
        ),
        (
            {"own_arms": {"x": {"tuned_as": "gated_fused_text"}}},
            r"tuned_as: gated_fused_text was renamed; write tuned_as: stacked_text",
        ),
        ({"own_arms": {"x": {"scored_share": 0.5}}}, r"scored_share was renamed; write scored_fraction"),
        ({"own_arms": {"x": {"permuted_fraction": 0.5}}}, r"permuted_fraction needs scores: permuted, got 0.5"),
        ({"own_arms": {"x": {"shuffled_scores": True}}}, r"shuffled_scores was renamed; write scores: permuted"),
        ({"own_arms": {"x": {"like": "mine"}}}, r"own_arms.x.like must be among none, .*late_fusion, got mine"),
        ({"own_arms": {"none": {}}}, r"own_arms must have names of their own, got the built-in none"),
        ({"own_arms": {"x": {"gate": {"mod": "paper"}}}, "arms": ["none", "x"]}, r"gate.mod: unknown key"),
        (
            {"own_arms": {"x": {"backbones": ["dcnv2"]}}},
            r"own_arms.x.backbones must be among dcn, din, got dcnv2",
        ),
        (
            {"domains": {"shop": {**MATRIX["domains"]["shop"], "arms": ["glbal"]}}},
            r"domains.shop.arms must be among .*global.*, got glbal",
        ),
        (
            {"own_arms": {"x": {"gate_from": "stall/global"}}},
            r"own_arms.x.gate_from must be `domain/arm`, both of this matrix, got stall/global",
        ),
        ({"shared": {"modl": {}}}, r"modl: unknown key; did you mean model\?"),
        ({"domain": {}}, r"domain: unknown key; did you mean domains\?"),
        ({"tuned": "nowhere.yaml"}, r"tuned must name a file, got .*nowhere.yaml"),
    ],
)
def test_a_matrix_that_cannot_be_run_is_refused_before_anything_is_spent(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_ablation(write(tmp_path, **changes))


def test_tuned_values_of_an_arm_under_its_old_name_are_refused(tmp_path):
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump({"arms": {"gated_fused": {"loss": {"llm_weight": 7.0}}}}))
    with pytest.raises(ConfigError, match=r"tuned.yaml .*\n +arms: .*the arm gated_fused was renamed; write stacked"):
        load_ablation(write(tmp_path, tuned="tuned.yaml"))


def test_text_features_need_item_vectors(tmp_path):
    domains = {"shop": {**MATRIX["domains"]["shop"], "llm": {}, "item_vectors": {"source": "none"}}}
    arms = ["none", "text_features"]
    with pytest.raises(ConfigError, match=r"model.item_vectors needs vectors, got item_vectors.source none; set"):
        load_ablation(write(tmp_path, domains=domains, shared={}, arms=arms))


def test_the_pipeline_of_the_winner_is_what_the_matrix_ran():
    configs = pathlib.Path(__file__).parents[3] / "configs"
    pipeline = load_config(configs / "amazon-stacked.yaml")
    cell = load_ablation(configs / "amazon.yaml").cell("toys", "dcnv2", "stacked_text_match", pipeline.train.seed)

    # The model without pairs is an arm of the matrix and a step of the pipeline.
    but = {"name": True, "train": {"compare"}}
    assert pipeline.model_dump(exclude=but) == cell.model_dump(exclude=but)
