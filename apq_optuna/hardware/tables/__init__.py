"""Cost tables: made, compiled, corrected, checked and compared."""
