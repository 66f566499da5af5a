"""A schedule of runs on past data: what each window gained, and whether querying the LLM again pays."""
