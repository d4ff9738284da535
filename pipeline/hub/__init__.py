"""Files from the Hugging Face hub, and a trained folder to it."""
