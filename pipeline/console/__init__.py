"""What a person reads on a terminal and in a log: messages, progress, colours, human units."""
