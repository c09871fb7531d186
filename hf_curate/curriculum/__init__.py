"""Which problems a policy is trained on next, decided again and again while it trains."""
