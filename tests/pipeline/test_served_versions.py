"""Old versions go; the newest and those that serve stay."""

import http.server
import json
import pathlib
import threading

import pytest

from sllmr.models.errors import UserError
from sllmr.pipeline.cli import main
from sllmr.pipeline.served_versions import loaded_versions, newest_version, prune


@pytest.fixture
def model(tmp_path) -> pathlib.Path:
    """A folder with versions 8 to 12, and what is no version."""
    for name in ("8", "9", "10", "11", "12", "temp"):
        (tmp_path / name / "variables").mkdir(parents=True)
    return tmp_path


def names(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def server():
    """A server that says of versions 8 and 12 that they are loaded, and of 9 that it is not any more."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            states = {"8": "AVAILABLE", "9": "END", "12": "LOADING"}
            status = [{"version": version, "state": state} for version, state in states.items()]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": status}).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1/models/ranker"
        running.shutdown()


def test_versions_are_compared_as_numbers(model):
    assert newest_version(model).name == "12"
    assert newest_version(model / "none") is None


def test_the_newest_versions_stay(model):
    removed = prune(model, keep=3)

    assert [path.name for path in removed] == ["8", "9"]
    assert names(model) == ["10", "11", "12", "temp"]


def test_the_model_card_of_a_removed_version_goes_with_it(model):
    for name in ("8", "9", "11"):  # a version with another catalog has none
        (model / f"{name}.md").write_text("# Model card")

    prune(model, keep=3)

    assert names(model) == ["10", "11", "11.md", "12", "temp"]


def test_a_version_that_a_server_has_loaded_stays(model, server, capsys):
    assert main(["prune", "--model", str(model), "--keep", "2", "--server", server]) == 0

    assert names(model) == ["11", "12", "8", "temp"]
    assert capsys.readouterr().out == f"removed {model}/9\nremoved {model}/10\n"
    assert loaded_versions(server) == {8, 12}


def test_nothing_is_removed_where_the_server_does_not_answer(model, server, capsys):
    address = server.rsplit(":", 1)[0] + ":1/v1/models/ranker"

    assert main(["prune", "--model", str(model), "--keep", "2", "--server", address]) == 1

    assert "nothing was removed" in capsys.readouterr().err
    assert len(names(model)) == 6


@pytest.mark.parametrize(("keep", "folder", "rule"), [(1, ".", "at least 2"), (2, "temp", "holds no version")])
def test_what_cannot_be_pruned_is_refused(model, keep, folder, rule):
    with pytest.raises(UserError, match=rule):
        prune(model / folder, keep=keep)
