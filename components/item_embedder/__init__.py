"""ItemEmbedder: item texts to vectors."""
