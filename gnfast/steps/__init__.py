"""A training step as one CUDA graph, several batches in one forward, and memory that steps use again."""
