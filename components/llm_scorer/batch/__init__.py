"""The Batch API: what is submitted, polled and fetched."""
