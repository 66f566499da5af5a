"""PairBuilder: turns the score table into preference pairs, each of two candidates of one scoring context."""
