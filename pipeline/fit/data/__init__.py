"""Rows of a prepared folder to padded batches on a device."""
