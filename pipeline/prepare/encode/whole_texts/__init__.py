"""Rows of whole texts: for a model's own chat template, and for tokenizers that cross lines."""
