"""Training of a RankingModel: the recipe, the loop, the calibration of scores, and the report."""
