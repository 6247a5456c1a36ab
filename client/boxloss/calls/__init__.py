"""Internal: the clients, and how what they are asked becomes messages and answers become results."""
