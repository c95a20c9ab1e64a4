"""A model of one's own where a supernet would be: its networks, sliced out of its weights."""
