"""Building blocks of methods, one per file."""
