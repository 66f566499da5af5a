"""InteractionsExampleGen: turns tables of interactions, items and users into the rows of three splits."""
