"""Measured latency tables: the times of single layers on each runtime."""
