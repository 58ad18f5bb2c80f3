"""One module for each thing that a user asks for, and what they share."""
