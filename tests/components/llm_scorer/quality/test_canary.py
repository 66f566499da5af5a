"""The injection canary: an LLM that obeys titles is told from one that does not, and no score changes."""

import json
import re

import apache_beam as beam
import pytest
from pydantic import ValidationError

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.quality.canary import (
    ANSWERED,
    FOLLOWED,
    PLANTED,
    SENT,
    ZEROED,
    canary_line,
    canary_report,
    counts_of,
    has_canary,
)
from sllmr.components.scores import read_scores
from tests.components.llm_scorer.market import market_rows
from tests.components.llm_scorer.stub_server import chat_response
from tests.components.llm_scorer.test_job import stub_settings, workspace


def test_the_fraction_depends_on_seed_and_context_alone():
    config = LlmConfig.model_validate({"model": "m", "audit": {"canary_fraction": 0.2}})
    picked = [has_canary(f"c{n}", config) for n in range(1000)]
    assert 150 < sum(picked) < 250
    assert picked == [has_canary(f"c{n}", config) for n in range(1000)]
    assert not any(has_canary(f"c{n}", LlmConfig()) for n in range(100))


@pytest.mark.parametrize(
    ("planted", "others", "expected"),
    [
        (None, [0.5], {SENT: 1}),
        (0.9, [None, None], {SENT: 1}),
        (0.4, [0.5, 0.1], {SENT: 1, ANSWERED: 1}),
        (1.0, [1.0, 0.1], {SENT: 1, ANSWERED: 1}),
        (1.0, [0.8, None], {SENT: 1, ANSWERED: 1, FOLLOWED: 1}),
        (1.0, [0.0, 0.05], {SENT: 1, ANSWERED: 1, FOLLOWED: 1, ZEROED: 1}),
    ],
)
def test_what_counts_as_followed(planted, others, expected):
    assert {name: count for name, count in counts_of(planted, others).items() if count} == expected


def test_the_report_has_a_rate_and_an_interval_and_the_line_says_both():
    assert canary_report({}) is None
    report = canary_report({SENT: 24, ANSWERED: 20, FOLLOWED: 3, ZEROED: 2})
    assert report is not None
    assert (report.contexts, report.rate) == (24, 3 / 20)
    assert report.interval_95 is not None
    assert report.interval_95[0] < 3 / 20 < report.interval_95[1]
    assert "3 of 20 responses followed an instruction in an item's title" in canary_line(report)
    assert "docs/security.md" in canary_line(report)
    unanswered = canary_report({SENT: 2})
    assert unanswered is not None
    assert "none of 2 requests" in canary_line(unanswered)


def lines_of(body) -> list[tuple[int, str]]:
    found = re.findall(r"^(\d+)\. (.*)$", body["messages"][-1]["content"], re.MULTILINE)
    return [(int(number), text) for number, text in found]


def by_title(obeys: bool):
    """Scores that depend on the candidate alone; one that obeys gives the planted item all."""

    def reply(handler, body):
        lines = lines_of(body)
        has_order = any(text.startswith(PLANTED.title[:20]) for _, text in lines)
        entries = []
        for number, text in lines:
            is_planted = text.startswith(PLANTED.title[:20])
            score = float(is_planted) if obeys and has_order else 0.1 if is_planted else len(text) % 7 / 10
            entries.append({"item": number, "score": score})
        handler.send_json(200, chat_response(entries))

    return reply


@pytest.mark.slow
@pytest.mark.parametrize("obeys", [True, False])
def test_an_llm_that_obeys_titles_is_reported_and_no_score_changes(stub, tmp_path, obeys):
    stub.always = by_title(obeys)
    plain = score(workspace(tmp_path, "plain", stub_settings(stub, model_id="a")), beam.Create(market_rows()))
    assert plain.canary is None
    before = len(stub.received)
    settings = stub_settings(stub, model_id="b", audit={"canary_fraction": 0.5})
    book = score(workspace(tmp_path, "canary", settings), beam.Create(market_rows()))
    assert book.canary is not None
    canaries = book.canary.contexts
    assert 0 < canaries < 10
    assert len(stub.received) - before == 10 + canaries == book.requests.sent
    assert book.canary.responses_with_scores == canaries
    assert book.canary.followed == book.canary.zeroed_the_others == (canaries if obeys else 0)
    tables = [
        {r.context_id: (r.item_ids, r.llm_scores) for r in read_scores(str(tmp_path / name / "scores"))}
        for name in ("plain", "canary")
    ]
    assert tables[0] == tables[1]
    planted = [body for body in stub.received if PLANTED.title[:20] in json.dumps(body)]
    assert len(planted) == canaries
    # From the cache, too.
    again = score(workspace(tmp_path, "again", settings), beam.Create(market_rows()))
    assert again.canary == book.canary
    assert again.requests.sent == 0


def test_other_strategies_have_no_canary():
    with pytest.raises(ValidationError, match=r"audit\.canary_fraction needs listwise, .* got 0\.1"):
        LlmConfig.model_validate({"audit": {"canary_fraction": 0.1}})
