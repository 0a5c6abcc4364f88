"""Measures of samples against real data, and of the model against the bound."""
