"""Is it what it says? A config held against its source, its model and its verifier; and two configs compared."""
