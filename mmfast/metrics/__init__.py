"""Measures that compare samples with real data and with each other: functions of tensors, for samples of any model."""
