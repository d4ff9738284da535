"""Where segments are encoded: this machine, or a Ray cluster."""
