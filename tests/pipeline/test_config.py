"""One YAML file, checked in full before anything runs."""

import pathlib

import pytest

from pipeline.config import Config, ConfigError, load_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    file = tmp_path / "shop.yaml"
    file.write_text(text)
    return file


def test_a_file_that_names_the_two_tables_is_enough(tmp_path):
    config = load_config(write(tmp_path, "data: {interactions: a.csv, items: sub/b.csv}"))
    assert config.data.interactions == str(tmp_path / "a.csv")
    assert config.data.items == str(tmp_path / "sub" / "b.csv")
    assert config.name == "shop"
    assert config.model.backbone == "dcnv2"
    assert config.gate.mode == "supervised"
    assert config.llm.uses_local_server


def test_a_model_name_is_all_that_another_llm_needs(tmp_path):
    config = load_config(write(tmp_path, "data: {interactions: a.csv, items: b.csv}\nllm: {model: gpt-4o-mini}"))
    resolved = config.llm.resolve()
    assert resolved.strategy == "listwise"
    assert resolved.base_url == "https://api.openai.com/v1"


def test_every_path_is_relative_to_the_file(tmp_path):
    text = """
data: {interactions: a.csv, items: b.csv}
llm: {strategy: embedding, embedding_file: sub/e.npz}
model: {item_vectors_file: v.npz}
gate: {mode: fused, weights_from: ../t.json}
loss: {form: distillation}
"""
    config = load_config(write(tmp_path, text))
    assert config.llm.prompt_file is None
    assert config.llm.embedding_file == str(tmp_path / "sub" / "e.npz")
    assert config.llm.replay_table is None
    assert config.model.item_vectors_file == str(tmp_path / "v.npz")
    assert config.gate.weights_from == str(tmp_path.parent / "t.json")


def test_the_configuration_survives_json(tmp_path):
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {interactions: a.csv}", "data.items: missing"),
        ("data: {interactions: a, items: b}\nmodle: {}", "modle: unknown key; did you mean model?"),
        (
            "data: {interactions: a, items: b}\nllm: {budget: {pair: 3}}",
            "llm.budget.pair: unknown key; did you mean pairs?",
        ),
        ("data: {interactions: a, items: b}\nllm: {budget: {pairs: -3}}", "llm.budget.pairs: .*got -3"),
        (
            "data: {interactions: a, items: b}\nevaluation: {min_auc: {cold: 1.5}}",
            r"min_auc.cold must be in \[0, 1\], got 1.5",
        ),
        (
            "data: {interactions: a, items: b}\nevaluation: {min_auc: {}}",
            "min_auc must name at least one slice",
        ),
        (
            "data: {interactions: a, items: b}\npairs: {drop_inconsistent: true}",
            r"  pairs\.drop_inconsistent needs contexts that are asked in two orders, got llm\.audit\.share 0",
        ),
        (
            "data: {interactions: a, items: b}\ngate: {mode: fused}\nloss: {form: pointwise}",
            "loss.form pointwise does not ask a gate of mode fused; set loss.form to pairwise or distillation",
        ),
        (
            "data: {interactions: a, items: b}\ngate: {mode: advantage}\nloss: {form: distillation}",
            "loss.form distillation does not ask a gate of mode advantage; set loss.form to pairwise, or another",
        ),
        ("data: {interactions: a, items: b}\nmodel: {backbone: dcnv9}", "dcnv9"),
        ("- a\n- b", "must hold keys and values, got list"),
        ("data: [", "is not YAML"),
    ],
)
def test_a_broken_rule_is_named_with_its_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_every_broken_rule_is_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "data: {interactions: a}\ntrain: {epochs: 0, batch_size: 0}"))
    assert all(key in str(caught.value) for key in ("data.items", "train.epochs", "train.batch_size"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_beam_runs_locally_in_python_unless_another_runner_is_named(tmp_path):
    text = "data: {interactions: a, items: b}\n"
    modes = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
    assert load_config(write(tmp_path, text)).beam.pipeline_args == ("--runner=FnApiRunner", *modes)
    flink = load_config(write(tmp_path, text + "beam: {args: ['--runner=FlinkRunner']}"))
    assert flink.beam.pipeline_args == ("--runner=FlinkRunner",)


@pytest.mark.parametrize("args", ["['--runner=DaskRunner']", "['--runner', 'DaskRunner']"])
def test_the_dask_runner_is_this_projects_own(tmp_path, args):
    config = load_config(write(tmp_path, f"data: {{interactions: a, items: b}}\nbeam: {{args: {args}}}"))
    assert "=".join(config.beam.pipeline_args) == "--runner=pipeline.dask_runner.DaskRunner"


def test_beams_dask_runner_is_refused(tmp_path):
    text = (
        "data: {interactions: a, items: b}\nbeam: {args: ['--runner=apache_beam.runners.dask.dask_runner.DaskRunner']}"
    )
    with pytest.raises(ConfigError, match=r"beam.args: .* writes empty files.* set --runner=DaskRunner"):
        load_config(write(tmp_path, text))


def test_a_password_in_the_base_url_is_refused_and_not_repeated(tmp_path):
    text = "data: {interactions: a, items: b}\nllm: {base_url: 'https://me:hunter2@host/v1'}"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert "hunter2" not in str(caught.value)
    assert "base_url" in str(caught.value)


def test_a_key_put_in_the_place_of_its_variables_name_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(ConfigError, match="must be the NAME of an environment variable") as caught:
        load_config(write(tmp_path, "data: {interactions: a, items: b}\nllm: {api_key_env: sk-secret-1}"))
    assert "sk-secret" not in str(caught.value)


def test_a_key_put_into_the_file_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "data: {interactions: a, items: b}\nllm: {api_key: sk-secret}"))
    assert "sk-secret" not in str(caught.value)
