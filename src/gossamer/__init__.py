"""Train neural networks sparse from scratch."""
