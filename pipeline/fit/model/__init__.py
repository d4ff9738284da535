"""A name or folder to a model that is ready to train."""
