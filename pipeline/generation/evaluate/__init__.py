"""``duet eval``: stage (models and pairs to a report), pairs (what is judged), losses, metrics
(answers to numbers), intervals (how sure they are), report (the table).
"""
