"""Devices: what prices a layer, and how one is found by name."""
