"""Keys and values of texts that were read before, kept for texts that begin alike."""
