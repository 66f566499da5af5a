"""Artifact types where TFX has none that fits."""

from tfx.types import artifact


class ItemCatalog(artifact.Artifact):
    """The items: text for prompts, attributes for features, popularity counted on train rows. See catalog.py."""

    TYPE_NAME = "ItemCatalog"


class DataReport(artifact.Artifact):
    """What ExampleGen read, dropped and split, as `data_report.json`."""

    TYPE_NAME = "DataReport"


class LlmScores(artifact.Artifact):
    """The (user, item) -> score table with failures and ledger. See scores.py."""

    TYPE_NAME = "LlmScores"
