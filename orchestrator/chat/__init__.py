"""A client of a server: what is asked, what comes of it, and how fast. No terminal."""
