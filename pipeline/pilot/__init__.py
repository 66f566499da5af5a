"""`sllmr pilot`: a small sample of the LLM's responses says whether the full bill pays."""
