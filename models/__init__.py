"""LLaMA in Flax NNX, its configurations, checkpoint readers and tokenizers."""
