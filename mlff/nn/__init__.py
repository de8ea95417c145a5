"""Pieces that models and heads are made of."""
