"""The walk-through: real commands, their real output, and what they mean."""
