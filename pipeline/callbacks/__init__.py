"""Callbacks of the user's own, which the config lists, and the profile of a few steps."""
