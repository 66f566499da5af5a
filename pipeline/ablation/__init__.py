"""The matrix of backbones, domains, arms and seeds, and its tables with the paper's numbers."""
