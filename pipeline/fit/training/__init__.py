"""The optimizer steps, and what is measured and said of them."""
