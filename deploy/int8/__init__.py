"""int8 for every runtime that computes in floating point between its layers."""
