"""``duet serve``: OpenAI's HTTP interface and a chat page on the engine.

In the order of a request: gate (who may, how many, how large), app (the routes), schema (what is
asked), conversion (to ids and settings), answers (the engine's answers in the event loop),
responses (objects and events), failures (OpenAI's errors). stage starts and ends it; metrics count.
"""
