"""The page of a prepared folder."""
