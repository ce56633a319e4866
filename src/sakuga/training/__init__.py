"""Training in plain PyTorch: data, objectives, loops. Knows nothing of Ray."""
