"""One YAML file, checked in full before anything runs."""

import pathlib

import pytest

from sllmr.pipeline.config import Config, ConfigError, load_config, read_yaml

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
    assert config.gate.mode == "stacked"
    assert (config.item_vectors.source, config.model.item_vectors, config.model.text_match) == ("bundled", True, True)
    assert config.llm.uses_local_server


def test_a_section_that_the_file_names_keeps_the_other_defaults(tmp_path):
    text = "data: {interactions: a, items: b}\ngate: {held_out_fraction: 0.5}\nllm: {candidates: {per_context: 6}}"
    config = load_config(write(tmp_path, text))

    assert (config.gate.mode, config.gate.held_out_fraction) == ("stacked", 0.5)
    assert (config.loss.form, config.loss.llm_weight) == ("distillation", 3.0)
    assert config.pairs.selection == "cover"
    assert config.llm.candidates.contexts == "latest"
    assert config.llm.candidates.similar_per_context == 2  # what fits beside the target item, its negatives, a rare one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("item_vectors: {source: none}", (False, False)),
        ("model: {item_vectors: false}", (False, False)),
        ("model: {text_match: false}", (True, False)),
    ],
)
def test_the_text_match_goes_with_the_vectors(tmp_path, text, expected):
    model = load_config(write(tmp_path, f"data: {{interactions: a, items: b}}\n{text}")).model

    assert (model.item_vectors, model.text_match) == expected


@pytest.mark.parametrize(
    ("text", "form", "weight"),
    [
        ("gate: {mode: paper}", "pairwise", 0.1),
        ("gate: {mode: supervised, signals: [entropy]}", "pairwise", 0.1),
        ("loss: {form: pointwise}", "pointwise", 0.1),
        ("loss: {form: pairwise}", "pairwise", 0.1),
        ("loss: {llm_weight: 5}", "distillation", 5.0),
        ("item_vectors: {source: none}", "distillation", 10.0),
    ],
)
def test_the_loss_follows_the_gate_and_what_the_file_sets_stands(tmp_path, text, form, weight):
    config = load_config(write(tmp_path, f"data: {{interactions: a, items: b}}\n{text}"))

    assert (config.loss.form, config.loss.llm_weight) == (form, weight)
    is_stacked = form != "pointwise" and "mode" not in text
    assert config.gate.mode == ("stacked" if is_stacked else "paper" if "paper" in text else "supervised")
    assert config.pairs.selection == ("cover" if form == "distillation" else "widest")
    assert config.llm.candidates.tail_target_fraction == (0.0 if is_stacked else 0.1)


def test_a_model_name_is_all_that_another_llm_needs(tmp_path):
    config = load_config(write(tmp_path, "data: {interactions: a.csv, items: b.csv}\nllm: {model: gpt-4o-mini}"))
    resolved = config.llm.resolve()
    assert resolved.strategy == "listwise"
    assert resolved.base_url == "https://api.openai.com/v1"


def test_every_path_is_relative_to_the_file(tmp_path):
    text = """
data: {interactions: a.csv, items: b.csv}
item_vectors: {source: file, file: sub/v.npz}
gate: {mode: stacked, weights_from: ../t.json}
loss: {form: distillation}
"""
    config = load_config(write(tmp_path, text))
    assert config.llm.prompt_file is None
    assert config.llm.replay_table is None
    assert config.item_vectors.file == str(tmp_path / "sub" / "v.npz")
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
            r"  pairs\.drop_inconsistent needs contexts that are queried in two orders, got llm\.audit\.fraction 0",
        ),
        (
            "data: {interactions: a, items: b}\ngate: {mode: stacked}\nloss: {form: pointwise}",
            "loss.form pointwise does not use a gate of mode stacked; set loss.form to pairwise or distillation",
        ),
        (
            "data: {interactions: a, items: b}\ngate: {mode: advantage}\nloss: {form: distillation}",
            "loss.form distillation does not use a gate of mode advantage; set loss.form to pairwise, or another",
        ),
        (
            "data: {interactions: a, items: b}\ntrain: {compare: false, compare_vectors: true}",
            "train.compare_vectors needs train.compare, got false; set train.compare: true",
        ),
        (
            "data: {interactions: a, items: b}\nitem_vectors: {source: none}\ntrain: {compare_vectors: true}",
            "train.compare_vectors needs item vectors, got item_vectors.source none; set it to bundled",
        ),
        (
            "data: {interactions: a, items: b}\nllm: {strategy: embedding}\ntrain: {compare_vectors: true}",
            "train.compare_vectors needs another scorer to compare the vectors with, got llm.strategy embedding",
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


PLUGINS = "--beam_plugins=sllmr.components"


def test_beam_runs_locally_in_python_unless_another_runner_is_named(tmp_path):
    text = "data: {interactions: a, items: b}\n"
    local = load_config(write(tmp_path, text)).beam
    assert local.pipeline_args == ("--runner=FnApiRunner", *local.args, "--sdk_container_image=none", PLUGINS)
    flink = load_config(write(tmp_path, text + "beam: {args: ['--runner=FlinkRunner']}"))
    assert flink.beam.pipeline_args == ("--runner=FlinkRunner", PLUGINS)


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://host/db",
        "postgresql://scorer@host:5432/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://scorer%40shop@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://[::1]:5432/db",
        "postgresql:///db?host=/run/postgresql",
    ],
)
def test_a_shared_store_is_a_url_of_postgresql(tmp_path, store):
    text = f"data: {{interactions: a, items: b}}\nstore: '{store}'"
    assert load_config(write(tmp_path, text)).store == store


@pytest.mark.parametrize(
    ("store", "fix"),
    [
        ("postgresql://me:hunter2@host/db", "PGPASSWORD"),
        ("postgresql://me:@host/db", "PGPASSWORD"),
        ("postgresql://me@host/db?password=hunter2", "PGPASSWORD"),
        ("postgresql://me@host/db?sslpassword=hunter2", "PGPASSWORD"),
        # What looks like a part of the URL may be the rest of a password.
        ("postgresql://me:hunter2/x@host/db", "%XX"),
        ("postgresql://me:5/hunter2@host/db", "%XX"),
        ("postgresql://me:hunter2?x@host/db", "%XX"),
        ("postgresql://me:5?hunter2@host/db", "%XX"),
        ("postgresql://me:hunter2#x@host/db", "%XX"),
        ("postgresql://me:5#hunter2@host/db", "%XX"),
        ("postgresql://me:hunter2@[host/db", "%XX"),
        ("postgresql://me:hunter2", "%XX"),
        ("host=db user=me password=hunter2", "postgresql://user@host/database"),
        ("mysql://me:hunter2@host/db", "PGPASSWORD"),
        ("postgresql://hunter2", "postgresql://user@host/database"),
    ],
)
def test_a_password_in_the_store_is_refused_and_not_repeated(tmp_path, store, fix):
    text = f"data: {{interactions: a, items: b}}\nstore: '{store}'"
    with pytest.raises(ConfigError, match="store must") as caught:
        load_config(write(tmp_path, text))
    assert "hunter2" not in str(caught.value)
    assert fix in str(caught.value)


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


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("data: {interactions: a, items: b}\ntrain: {epochs: 1}\nloss: {llm_weight: 0}\ntrain: {}", "train", (4, 2)),
        ("data: {interactions: a, items: b, items: c}", "items", (1, 1)),
        ("data:\n  interactions: a\n  items: b\n  'items': c", "items", (4, 3)),
        ("data: {interactions: a, items: b}\nllm:\n  budget:\n    pairs: 1\n    pairs: 2", "pairs", (5, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, text, key, lines):
    again, first = lines
    with pytest.raises(ConfigError, match=rf"shop.yaml:{again}: .*got '{key}' again after line {first}"):
        load_config(write(tmp_path, text))


def test_a_merged_mapping_may_be_overridden(tmp_path):
    text = "data: &d {interactions: a, items: b}\nllm: {budget: {pairs: 3}}\n"
    assert load_config(write(tmp_path, text)).llm.budget.pairs == 3
    read = read_yaml(write(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n"))
    assert read["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("name", ["my shop", "shop.v2", "läden"])
def test_the_name_of_the_file_obeys_the_rule_of_name(tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text("data: {interactions: a, items: b}")
    with pytest.raises(ConfigError, match=rf"got '{name}' from the file's name; rename the file or set name: "):
        load_config(file)
    file.write_text("name: shop\ndata: {interactions: a, items: b}")
    assert load_config(file).name == "shop"


def test_environment_variables_in_paths_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP", str(tmp_path / "elsewhere"))
    config = load_config(write(tmp_path, "data: {interactions: $SHOP/a.csv, items: '${SHOP}/b.csv'}"))
    assert config.data.interactions == str(tmp_path / "elsewhere" / "a.csv")
    assert config.data.items == str(tmp_path / "elsewhere" / "b.csv")


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_SHOP", raising=False)
    text = "data: {interactions: a.csv, items: b.csv}\nitem_vectors: {source: file, file: $NO_SUCH_SHOP/v.npz}"
    with pytest.raises(ConfigError, match=r"item_vectors.file names the environment variable \$NO_SUCH_SHOP"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    "key", ["data: {interactions: 's3://b/a', items: b}", "item_vectors: {source: file, file: gs://b/v.npz}"]
)
def test_an_address_in_place_of_a_path_is_refused(tmp_path, key):
    text = key if key.startswith("data") else f"data: {{interactions: a, items: b}}\n{key}"
    with pytest.raises(ConfigError, match="must be a path on this machine"):
        load_config(write(tmp_path, text))
