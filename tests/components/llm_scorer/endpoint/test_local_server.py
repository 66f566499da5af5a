import json
import os
import select
import signal
import subprocess
import sys
import urllib.request

import pytest

from sllmr.components.llm_scorer.endpoint.local_server import LocalServerError, local_server

SETTINGS = {"threads": 1, "slots": 1, "context": 256}

PARENT = """
import sys
from sllmr.components.llm_scorer.endpoint.local_server import local_server
with local_server(sys.argv[1], threads=1, slots=1, context=256, log_path=sys.argv[2]) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def answers(url: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            url.removesuffix("/v1") + "/health", timeout=5
        )
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_the_server_ends_with_its_block_also_by_an_error(model_path, tmp_path):
    urls = []

    def fail_inside() -> None:
        with local_server(model_path, log_path=str(tmp_path / "log"), **SETTINGS) as url:
            urls.append(url)
            assert answers(url)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert not answers(urls[0])


@pytest.mark.slow
def test_the_server_dies_with_a_parent_that_is_killed_outright(model_path, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, model_path, str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert answers(url)
    (server,) = _children(parent.pid)
    handle = os.pidfd_open(server)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    try:
        # Readable once the process has ended.
        assert select.select([handle], [], [], 30)[0]
    finally:
        os.close(handle)
        parent.stdin.close()
        parent.stdout.close()
    assert not answers(url)


def test_a_server_that_cannot_start_says_what_its_log_says(tmp_path):
    bad = tmp_path / "weights.gguf"
    bad.write_bytes(b"no weights")
    with (
        pytest.raises(
            LocalServerError, match=r"the local LLM server ended before it was ready; its log .*log ends with"
        ),
        local_server(str(bad), log_path=str(tmp_path / "log"), **SETTINGS),
    ):
        pass


@pytest.mark.slow
def test_contexts_that_share_only_the_instructions_keep_their_histories_cached_side_by_side(llm_url):
    """Asked in turn, as threads of a worker do; each context's later prompts differ from its first in the last line."""

    def cached_fraction(person: str, candidate: str) -> float:
        history = "\n".join(f"- {person}'s film number {n}: Comedy, Drama" for n in range(10))
        messages = [
            {"role": "system", "content": "You judge whether an item fits a person's taste. Answer Yes or No only."},
            {"role": "user", "content": f"A person chose these items:\n{history}\n\nAnd this one? {candidate}"},
        ]
        usage = post(llm_url, {"model": "m", "max_tokens": 1, "messages": messages})["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]

    people = ("Ann", "Bob", "Cid")
    fractions = {person: [] for person in people}
    for candidate in ("Heat", "Fargo", "Alien"):
        for person in people:
            fractions[person].append(cached_fraction(person, candidate))
    assert all(first < 0.5 for first, *_ in fractions.values())
    assert all(later > 0.8 for _, *rest in fractions.values() for later in rest)


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return json.load(response)


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
