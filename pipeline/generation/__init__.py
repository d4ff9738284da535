"""What a trained model is used for, on one core: ``engine``.

config (settings of the commands), model (a folder to an engine), source (conversations to ids, as
training makes them), conversations (files to them), chat, generate with journal and progress (many
answers), server (HTTP), evaluate (how good they are).
"""
