"""Logs of trainings that ran elsewhere: recognized by their content, and read into histories without torch."""
