"""Artifact types where TFX has none that fits. Kubeflow Pipelines wants `namespace.Name`."""

from tfx.types import artifact


class ItemCatalog(artifact.Artifact):
    """The items: text for prompts, attributes for features, popularity counted on train rows. See catalog.py."""

    TYPE_NAME = "sllmr.ItemCatalog"


class DataReport(artifact.Artifact):
    """What ExampleGen read, dropped and split, as `data_report.json`."""

    TYPE_NAME = "sllmr.DataReport"


class LlmScores(artifact.Artifact):
    """The (user, item) -> score table with failures and ledger. See scores.py."""

    TYPE_NAME = "sllmr.LlmScores"


class ModelComparison(artifact.Artifact):
    """The model with pairs against the same model without, as `comparison.json`. See llm_comparison/verdict.py."""

    TYPE_NAME = "sllmr.ModelComparison"


class ItemVectors(artifact.Artifact):
    """One vector for each item with a text, as `vectors.npz`, with a report. See item_embedder/job.py."""

    TYPE_NAME = "sllmr.ItemVectors"


class LeakageReport(artifact.Artifact):
    """What LeakageGuard checked, as `leakage.json`. See leakage_guard/report.py."""

    TYPE_NAME = "sllmr.LeakageReport"
