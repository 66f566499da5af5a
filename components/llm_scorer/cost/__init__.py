"""What a scoring run costs, before the first request."""
