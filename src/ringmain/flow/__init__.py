"""Bytes on their way: what one connection brings, what is sent on one, and the kernel path between descriptors."""
