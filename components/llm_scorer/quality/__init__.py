"""What the scores are worth, after the last response: order audit, drift, staleness."""
