"""Rows line by line: each text is tokenized once, for the lossless tokenizer and its template."""
