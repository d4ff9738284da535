"""The core of generation: sources in, text out, for one caller or many at once.

In the order of the data: answer (a request, and its text as it comes), scheduler (which requests
run together), transformers_decoder and ctranslate2_decoder (ids to ids), sampling (logits to the
next id), text (ids to text, stop strings).
"""
