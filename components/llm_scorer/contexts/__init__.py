"""Whom and what to score: scoring contexts, their candidates, and what a rescoring keeps."""
