"""Networks as files for runtimes: for now the graphs that a device measures."""
