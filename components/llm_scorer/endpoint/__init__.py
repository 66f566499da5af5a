"""The wire: client, transport, retries, redaction, tokens, and the bundled model's server."""
