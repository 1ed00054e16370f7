"""Other machines with osaurusd that this one is paired with: identity, pairing, and encrypted connections to them."""
