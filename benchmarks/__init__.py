"""Measurements behind the project's claims; see README.md. Run from the project's folder: python -m benchmarks.NAME."""
