"""Processes to be killed: forks of one that has imported TensorFlow and Beam, so that they start at once."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sllmr.components.llm_scorer.jobs.scoring"])
