"""The model over HTTP, as clients of OpenAI and Anthropic expect it."""
