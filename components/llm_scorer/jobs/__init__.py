"""The use cases of the scorer: score, rescore, forecast, batch. Each is a function of a Workspace and train rows."""
