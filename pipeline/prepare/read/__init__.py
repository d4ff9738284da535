"""Files of records to conversations."""
