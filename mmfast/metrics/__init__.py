"""Measures of samples against real data and against each other: of tensors alone, whatever model drew them."""
