"""How long things take: one roofline, the head, prompts, machines that are shared."""
