"""Conversations to pairs to token ids."""
