"""Public data sets as the two tables that InteractionsExampleGen reads."""
