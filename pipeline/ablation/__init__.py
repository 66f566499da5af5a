"""The matrix of backbones, domains, arms and seeds, and its tables beside the paper's."""
