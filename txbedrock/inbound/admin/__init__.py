"""The management side: paths, fields and errors are LiteLLM's."""
