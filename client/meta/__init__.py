"""Few-shot learning as losses of the one training loop: episodes, algorithms, and sites' own adapted models."""
