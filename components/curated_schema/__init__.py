"""Writes the schema of the rows, which the feature table decides, as an artifact."""
