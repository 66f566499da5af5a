"""Did the LLM help? The ranking model with pairs against the same model without, on the same rows."""
