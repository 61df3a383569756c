"""Who is computed when: steps of many sequences, decided from messages and times."""
