"""How a model's config.json is taken apart: typed fields, known keys, RoPE in its several spellings."""
