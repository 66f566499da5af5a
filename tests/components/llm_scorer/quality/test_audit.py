"""The audit of position bias: a stub that sees the position, one that does not, and the formulas against other ones."""

import itertools
import random
import re
from collections.abc import Callable

import apache_beam as beam
import pytest
from pydantic import ValidationError

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.messages import Answer
from sllmr.components.llm_scorer.quality.audit import Flips, OrderAudit, audit_line, flips_by_gap, is_audited
from sllmr.components.llm_scorer.results import FlipReport
from sllmr.components.llm_scorer.strategies.listwise import Listwise
from sllmr.components.scores import POPULAR, ScoreRecord, read_scores
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, chat_response, failing
from tests.components.llm_scorer.test_job import stub_settings, workspace

CATALOG = market_items()
CONTEXT = context(items=[f"i{n}" for n in range(20, 27)])


def listwise(fraction: float = 1.0, **values) -> Listwise:
    settings = {
        "model": "m",
        "base_url": "http://host/v1",
        "strategy": "listwise",
        "audit": {"fraction": fraction},
        **values,
    }
    return Listwise(LlmConfig.model_validate(settings).resolve())


def titles(body: dict) -> list[str]:
    """The candidates of a prompt in the order in which it tells them."""
    return re.findall(r"^\d+\. (.*):", body["messages"][-1]["content"], re.MULTILINE)


def answer(scores: list[float]) -> Answer:
    entries = [{"item": n, "score": score} for n, score in enumerate(scores, start=1)]
    return Answer(response=chat_response(entries), answered_at=1)


def test_the_second_order_is_the_first_one_reversed_and_asks_in_the_same_words_otherwise():
    first, second = listwise().requests(CONTEXT, CATALOG)
    assert titles(second.body) == titles(first.body)[::-1]
    assert sorted(titles(first.body)) == sorted(CATALOG[c.item_id].title for c in CONTEXT.candidates)
    histories = {request.body["messages"][-1]["content"].split("Score each")[0] for request in (first, second)}
    assert len(histories) == 1
    assert first == listwise(fraction=0).requests(CONTEXT, CATALOG)[0]


def test_the_audited_fraction_depends_on_seed_and_context_alone():
    config = LlmConfig.model_validate({"model": "m", "audit": {"fraction": 0.2}})
    names = [f"context-{n}" for n in range(2000)]
    picked = [is_audited(name, config) for name in names]
    assert 0.17 < sum(picked) / 2000 < 0.23
    assert picked == [is_audited(name, config) for name in names]
    assert picked != [is_audited(name, config.model_copy(update={"seed": 1})) for name in names]
    assert not any(is_audited(name, LlmConfig()) for name in names)


def test_an_audited_score_is_the_mean_of_both_and_each_order_is_told():
    strategy = listwise()
    order = titles(strategy.requests(CONTEXT, CATALOG)[0].body)
    first, second = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.9, 0.0, 0.9, 0.0, 0.9, 0.0, 0.9]
    results = strategy.results(CONTEXT, [answer(first), answer(second)])
    for result in results:
        place = order.index(CATALOG[result.item_id].title)
        orders = first[place], second[::-1][place]
        assert result.order_llm_scores == orders
        assert result.llm_score == result.raw_score == sum(orders) / 2


def test_a_bias_that_is_linear_in_the_position_cancels_out_of_the_mean():
    strategy = listwise()
    worth = {CATALOG[c.item_id].title: 0.05 * n for n, c in enumerate(CONTEXT.candidates)}
    answers = [
        answer([worth[title] + 0.09 * place for place, title in enumerate(titles(request.body))])
        for request in strategy.requests(CONTEXT, CATALOG)
    ]
    results = strategy.results(CONTEXT, answers)
    by_mean = sorted(results, key=lambda result: result.llm_score or 0)
    assert [r.item_id for r in by_mean] == [c.item_id for c in CONTEXT.candidates]
    by_first = sorted(results, key=lambda result: (result.order_llm_scores or (0,))[0])
    assert [r.item_id for r in by_first] != [c.item_id for c in CONTEXT.candidates]


LOST = Answer(reason=messages.TIMEOUT, detail="late")


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        ([answer([0.1] * 7), LOST], 0),
        ([LOST, answer([0.1] * 7)], 1),
        ([answer([0.1] * 7), answer([0.2] * 6)], 0),
        ([answer([0.1] * 5), answer([0.2] * 6)], 1),
        ([answer([0.1] * 6), answer([0.2] * 6)], 0),
        ([LOST, LOST], 0),
    ],
)
def test_without_two_whole_answers_the_one_that_scores_more_counts_alone(answers, counts):
    audited, alone = listwise(), listwise(fraction=0)
    order = titles(audited.requests(CONTEXT, CATALOG)[counts].body)
    results = audited.results(CONTEXT, answers)
    assert not any(result.order_llm_scores for result in results)
    expected = {CATALOG[r.item_id].title: r for r in alone.results(CONTEXT, [answers[counts]])}
    # Alone, the answer belongs to the first order: what it says of place n is compared.
    first_order = titles(alone.requests(CONTEXT, CATALOG)[0].body)
    for result in results:
        there = expected[first_order[order.index(CATALOG[result.item_id].title)]]
        assert (result.llm_score, result.reason) == (there.llm_score, there.reason)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "m", "base_url": "http://host/v1", "strategy": "yes_no"},
        {"model": "m", "strategy": "embedding"},
        {"strategy": "replay", "replay_table": "t.csv"},
    ],
)
def test_a_strategy_whose_answer_knows_no_order_is_not_audited(settings):
    with pytest.raises(
        ValidationError, match=r"audit\.fraction needs listwise, .* got 0\.1 with .*llm\.audit\.fraction: 0"
    ):
        LlmConfig.model_validate({**settings, "audit": {"fraction": 0.1}})


def record(first: list[float], second: list[float], name: str = "c") -> ScoreRecord:
    return ScoreRecord(
        context_id=name,
        history_item_ids=("h",),
        history_length=1,
        item_ids=tuple(f"i{n}" for n in range(len(first))),
        llm_scores=tuple((a + b) / 2 for a, b in zip(first, second, strict=True)),
        raw_scores=tuple(first),
        roles=(POPULAR,) * len(first),
        first_llm_scores=tuple(first),
        second_llm_scores=tuple(second),
        model="m",
        strategy="listwise",
        prompt_version="p",
        scored_at=0,
    )


def test_flips_by_gap_are_those_of_a_plain_loop():
    rng = random.Random(3)
    for _ in range(20):
        # Tenths, so that there are ties.
        first, second = ([rng.randrange(11) / 10 for _ in range(8)] for _ in range(2))
        expected: dict[str, list[int]] = {}
        for a in range(8):
            for b in range(a):
                if first[a] == first[b] or second[a] == second[b]:
                    continue
                gap = abs((first[a] + second[a]) / 2 - (first[b] + second[b]) / 2)
                name = "below 0.1"
                if gap >= 0.1:
                    name = "below 0.25"
                if gap >= 0.25:
                    name = "below 0.5"
                if gap >= 0.5:
                    name = "0.5 or more"
                counts = expected.setdefault(name, [0, 0])
                counts[0] += 1
                counts[1] += (first[a] - first[b]) * (second[a] - second[b]) < 0
        found = flips_by_gap(record(first, second))
        assert {name: [flips.pairs, flips.flipped] for name, flips in found.items()} == expected


def test_the_report_sums_contexts_and_counts_those_that_were_to_be_asked_twice_and_were_not():
    audit = OrderAudit()
    audit.add(record([0.1, 0.5], [0.6, 0.2], "flips"))
    audit.add(record([0.1, 0.9], [0.2, 0.8], "stays"))
    report = audit.report(["flips", "stays", "lost"])
    assert report is not None
    assert (report.contexts, report.contexts_without_two_responses) == (2, 1)
    assert (report.pairs, report.flipped, report.flip_rate) == (2, 1, 0.5)
    assert report.by_score_gap["below 0.1"].flip_rate == 1
    assert "50.0% of 2 pairs flip" in audit_line(report)
    assert "1 more contexts have no second response" in audit_line(report)
    assert OrderAudit().report([]) is None
    assert Flips().report() == FlipReport(pairs=0, flipped=0, flip_rate=None, interval_95=None)


def scoring(stub: StubServer, score: Callable[[int, str], float]) -> None:
    """Makes the stub score each candidate by its place, from 1, and its title."""

    def reply(handler, body):
        entries = [{"item": n, "score": score(n, title)} for n, title in enumerate(titles(body), start=1)]
        handler.send_json(200, chat_response(entries))

    stub.always = reply


def worth(title: str) -> float:
    return int(title.split()[-1]) / 100


def biased(place: int, title: str) -> float:
    """Half the candidate, half its place."""
    return worth(title) / 2 + 0.5 / place


@pytest.mark.slow
def test_the_flip_rate_of_a_biased_llm_is_that_of_a_plain_loop_over_what_the_server_saw(stub: StubServer, tmp_path):
    scoring(stub, biased)
    settings = stub_settings(stub, audit={"fraction": 1})
    forecast = forecast_job(workspace(tmp_path, "plan", settings), beam.Create(market_rows()))[-1].size
    book = score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    assert book.scored == 60
    assert forecast.requests == book.requests.planned == book.requests.sent == len(stub.received) == 20
    assert forecast.cost_nano_usd is not None
    assert forecast.cost_nano_usd / 1e9 == pytest.approx(book.estimated_cost_usd)

    orders: dict[tuple, list[list[str]]] = {}
    for body in stub.received:
        history = body["messages"][-1]["content"].split("Score each")[0]
        orders.setdefault((history, *sorted(titles(body))), []).append(titles(body))
    flipped = pairs = 0
    for first, second in orders.values():
        scores = [{title: biased(n, title) for n, title in enumerate(order, start=1)} for order in (first, second)]
        for a, b in itertools.combinations(first, 2):
            pairs += 1
            flipped += (scores[0][a] > scores[0][b]) != (scores[1][a] > scores[1][b])
    audit = book.audit
    assert 0 < flipped < pairs == 10 * 15
    assert (audit.contexts, audit.pairs, audit.flipped) == (10, pairs, flipped)
    assert audit.flip_rate == flipped / pairs
    for stored in read_scores(str(tmp_path / "one" / "scores")):
        both = zip(stored.first_llm_scores, stored.second_llm_scores, strict=True)
        assert stored.llm_scores == pytest.approx([(a + b) / 2 for a, b in both])


@pytest.mark.slow
def test_an_llm_that_does_not_see_the_order_flips_nothing(stub: StubServer, tmp_path):
    scoring(stub, lambda place, title: worth(title))
    book = score(workspace(tmp_path, "one", stub_settings(stub, audit={"fraction": 1})), beam.Create(market_rows()))
    assert (book.audit.pairs, book.audit.flipped) == (150, 0)
    assert book.audit.interval_95[0] == pytest.approx(0)


@pytest.mark.slow
def test_a_lost_second_answer_leaves_the_scores_and_is_counted(stub: StubServer, tmp_path):
    scoring(stub, biased)
    settings = stub_settings(stub, audit={"fraction": 0.5}, concurrency=1)
    whole = score(workspace(tmp_path, "whole", settings), beam.Create(market_rows()))
    audited = whole.audit.contexts
    assert 0 < audited < 10
    assert whole.requests.sent == 10 + audited

    # A context's calls follow one another, so the second of two with the same candidates is the second order.
    seen: set[tuple] = set()
    always = stub.always
    assert always is not None

    def losing_second(handler, body):
        key = (body["messages"][-1]["content"].split("Score each")[0], *sorted(titles(body)))
        (failing(400, {"message": "no"}) if key in seen else always)(handler, body)
        seen.add(key)

    stub.always = losing_second
    other = {**settings, "temperature": 1}  # another cache key, the same answers
    book = score(workspace(tmp_path, "lost", other), beam.Create(market_rows()))
    assert (book.scored, book.failed, book.requests.failed) == (60, 0, audited)
    assert book.audit.contexts == 0
    assert book.audit.contexts_without_two_responses == audited
    first = {r.context_id: r for r in read_scores(str(tmp_path / "whole" / "scores"))}
    for stored in read_scores(str(tmp_path / "lost" / "scores")):
        earlier = first[stored.context_id]
        assert stored.llm_scores == (earlier.first_llm_scores or earlier.llm_scores)
        assert not stored.is_audited
