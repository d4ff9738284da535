"""Paths to files, files to segments, segments to the JSON values and rows in them."""
