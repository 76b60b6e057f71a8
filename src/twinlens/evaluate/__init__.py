"""How good a model is, from embeddings alone."""
