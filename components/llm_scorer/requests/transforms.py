"""Beam steps from scoring contexts to scores and failures."""

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from sllmr.components.llm_scorer.requests.handler import AskAhead, LlmHandler
from sllmr.components.llm_scorer.strategies.outcome import Outcome

SCORES = "scores"
FAILURES = "failures"


class AskLlm(beam.PTransform):
    """Context -> {SCORES: serialized ScoreRecord, FAILURES: JSON lines}; each candidate ends in exactly one of them."""

    def __init__(self, handler: LlmHandler):
        super().__init__()
        self._handler = handler

    def expand(self, contexts: beam.PCollection):
        return (
            contexts
            | "AskAhead" >> beam.ParDo(AskAhead(self._handler))
            | "RunInference" >> RunInference(self._handler)
            | "Part" >> beam.ParDo(_Part()).with_outputs(SCORES, FAILURES)
        )


class _Part(beam.DoFn):
    """Outcome -> at most one record as SCORES, and lines as FAILURES."""

    def process(self, outcome: Outcome):
        for line in outcome.failures:
            yield beam.pvalue.TaggedOutput(FAILURES, line)
        if outcome.record is not None:
            yield beam.pvalue.TaggedOutput(SCORES, outcome.record)
