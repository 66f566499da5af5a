"""Every file that a configuration names is checked before the first step."""

import numpy as np
import pytest

from sllmr.pipeline.config import ConfigError, load_config
from sllmr.pipeline.inputs import check_inputs


@pytest.fixture
def configure(tmp_path):
    def write(sections=""):
        (tmp_path / "i.csv").write_text("user_id,item_id,timestamp\n")
        (tmp_path / "t.csv").write_text("item_id,title\n" + "".join(f"{i},T\n" for i in range(10)))
        (tmp_path / "shop.yaml").write_text(f"data: {{interactions: i.csv, items: t.csv}}\n{sections}\n")
        return load_config(tmp_path / "shop.yaml")

    return write


def save_vectors(path, item_ids):
    names = np.array([str(i) for i in item_ids], dtype="U16")
    np.savez(path, item_id=names, vector=np.ones((len(names), 3), np.float32))


SECTIONS = {
    "llm.prompt_file": "llm: {prompt_file: nope}",
    "llm.replay_table": "llm: {strategy: replay, replay_table: nope}",
    "item_vectors.file": "item_vectors: {source: file, file: nope}",
    "gate.weights_from": "gate: {mode: advantage, weights_from: nope}",
}


@pytest.mark.parametrize("key", SECTIONS)
def test_a_missing_file_is_named_with_its_key(configure, key):
    with pytest.raises(ConfigError, match=rf"{key} must .*/nope, which does not exist"):
        check_inputs(configure(SECTIONS[key]))


@pytest.mark.parametrize(("content", "problem"), [(None, "which is a folder"), (b"", "which is empty")])
def test_what_is_no_file_of_vectors_is_refused(configure, tmp_path, content, problem):
    if content is None:
        (tmp_path / "nope").mkdir()
    else:
        (tmp_path / "nope").write_bytes(content)
    with pytest.raises(ConfigError, match=f"item_vectors.file must name a file.*{problem}"):
        check_inputs(configure(SECTIONS["item_vectors.file"]))


def test_a_file_of_another_kind_is_refused(configure, tmp_path):
    (tmp_path / "nope").write_text("item_id,vector\n")
    with pytest.raises(ConfigError, match=r"item_vectors.file: a file of item vectors must be an \.npz"):
        check_inputs(configure(SECTIONS["item_vectors.file"]))


@pytest.mark.parametrize(
    ("item_ids", "found", "hint"),
    [
        ([f"x{n}" for n in range(10)], 0, "the file's ids look like 'x0', those of data.items like '0'"),
        ([f"{n}.0" for n in range(10)], 0, "data.items has '0' and the file '0.0': the same id with .0"),
        ([0, *range(100, 120)], 1, "write one vector for each item_id"),
    ],
)
def test_vectors_that_match_few_items_are_refused(configure, tmp_path, item_ids, found, hint):
    save_vectors(tmp_path / "v.npz", item_ids)
    with pytest.raises(ConfigError, match=rf"(?s)got {found} of 10 .*{hint}"):
        check_inputs(configure("item_vectors: {source: file, file: v.npz}"))


def test_vectors_of_most_items_are_accepted(configure, tmp_path):
    save_vectors(tmp_path / "v.npz", range(7))
    check_inputs(configure("item_vectors: {source: file, file: v.npz}"))


def test_a_docker_daemon_that_does_not_answer_is_said_before_the_first_step(configure, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(
        ConfigError, match=r"serving\.infra_validation_tag needs a Docker daemon, which does not answer"
    ):
        check_inputs(configure("serving: {infra_validation_tag: 2.19.1}"))
