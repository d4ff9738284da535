"""What all rows share: which answers become targets, what is lost of them, and the columns."""
