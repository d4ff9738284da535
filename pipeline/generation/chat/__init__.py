"""``duet chat``: stage (the loop), session (turns and commands), terminal (what is shown)."""
