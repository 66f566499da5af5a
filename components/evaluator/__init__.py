"""The Evaluator: TFMA scores both models on the test rows by slice; a decision with reasons blesses or refuses."""
