"""PairBuilder: the score table becomes preference pairs of one user's items."""
