"""The page of one run, or of several over one another."""
