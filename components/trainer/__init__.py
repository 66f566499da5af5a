"""Trains the ranking model on rows and preference pairs."""
