"""Search for better values of a config: random candidates from stated ranges, the weaker half dropped again and again."""
