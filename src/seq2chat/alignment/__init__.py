"""Alignment: from a model that continues text to one that answers, by demonstrations, preferences
and reinforcement."""
