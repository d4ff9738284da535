"""What a trained model is used for, on one core: ``engine``.

config (settings of the commands), model (a folder to an engine), source (conversations to ids, as
training makes them), chat, generate (many conversations), evaluate (how good the answers are).
"""
