"""A connection: how it comes to be, and how it ends."""
