"""Serving: one process that serves the models of runs to OpenAI clients and browsers."""
