"""InteractionsExampleGen: two tables of interactions and items become the rows of three splits."""
