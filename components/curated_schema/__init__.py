"""Writes the schema of the rows, which follows from the feature table, as an artifact."""
