"""Faster ways through the same model: each gives stock transformers' loss and gradients."""
