"""What a run writes, and how it resumes from it."""
