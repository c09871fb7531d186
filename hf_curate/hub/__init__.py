"""What a curated config is on the Hub: manifest, card, README, push and load. Nothing in here imports torch."""
