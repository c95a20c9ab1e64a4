"""Cost tables as files, each fault named with its line."""
