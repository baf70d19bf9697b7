"""Serving: one process in which any OpenAI client and a browser talk with the models of runs."""
