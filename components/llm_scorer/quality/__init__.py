"""Reports on the quality of finished scores: order audit, injection canary, drift, staleness."""
